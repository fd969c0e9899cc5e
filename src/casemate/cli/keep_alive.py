"""``casemate keep-alive``: not idle, for so long."""

from __future__ import annotations

from typing import Annotated

import typer


def keep_alive(
    ref: Annotated[str, typer.Argument(metavar="SANDBOX", help="Its id, the beginning of it, or its name.")],
    for_s: Annotated[float, typer.Argument(metavar="SECONDS", help="From now on.")],
) -> None:
    """Keep a sandbox from idling for so many seconds.

    Until then it is neither parked nor suspended nor killed for having nothing to do. --max-duration ends it all the
    same.

    Example:
      casemate keep-alive work 3600
    """
    from casemate.sdk import Client, Sandbox

    with Client() as client:
        sandbox = Sandbox.connect(ref, client=client)
        sandbox.keep_alive(for_s)
        print(sandbox.id)
