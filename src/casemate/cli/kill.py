"""``casemate kill``: end sandboxes."""

from __future__ import annotations

import sys
from typing import Annotated

import typer


def kill(
    refs: Annotated[list[str], typer.Argument(metavar="SANDBOX...", help="Ids, their beginnings, or names.")],
) -> None:
    """End sandboxes, with everything in them.

    Goes on past one that is not there; the exit status is then 1.

    Example:
      casemate kill work
    """
    from casemate.errors import RequestError
    from casemate.sdk import Client, Sandbox

    failed = False
    with Client() as client:
        for ref in refs:
            try:
                Sandbox.connect(ref, client=client).kill()
                print(ref)
            except RequestError as error:
                failed = True
                print(f"error: {error}", file=sys.stderr)
    raise typer.Exit(1 if failed else 0)
