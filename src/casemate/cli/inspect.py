"""``casemate inspect``: all there is to know about a sandbox."""

from __future__ import annotations

import json
from typing import Annotated

import typer


def inspect(
    ref: Annotated[str, typer.Argument(metavar="SANDBOX", help="Its id, the beginning of it, or its name.")],
    as_json: Annotated[bool, typer.Option("--json", help="On one line.")] = False,
) -> None:
    """Print all there is to know about a sandbox.

    For a day also about one that has ended.

    Example:
      casemate inspect work | grep state_reason
    """
    from casemate.sdk import Client, Sandbox

    with Client() as client:
        info = Sandbox.connect(ref, client=client).info
    print(json.dumps(dict(info.raw), indent=None if as_json else 2))
