"""``casemate audit``: whether the record of what happened is whole."""

from __future__ import annotations

import json
from typing import Annotated

import typer

app = typer.Typer(help="Whether the record of what happened is whole: verify.", rich_markup_mode=None)
BROKEN = 1


def verify(
    mark: Annotated[
        str | None, typer.Option("--mark", metavar="ID:HASH", help="What an earlier verification printed.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Check the chain of events from the first to the last. Exit status 1 when it is broken.

    Keep the mark it prints somewhere else: with it a later verification also finds a chain written anew.

    Example:
      casemate audit verify --mark "$(cat /media/usb/casemate-mark)"
    """
    from casemate.sdk import Client, Events

    with Client() as client:
        found = Events(client).verify(mark)
    if as_json:
        print(json.dumps(found))
    else:
        for warning in found["warnings"]:
            print(f"warning: event {warning['id']}: {warning['why']}")
        if found["ok"]:
            print(f"{found['events']} events, unbroken; the mark of the last is {found['mark'] or 'none yet'}")
        else:
            print(f"broken at event {found['broken']['id']}: {found['broken']['why']}")
    raise typer.Exit(0 if found["ok"] else BROKEN)


# A callback keeps `verify` a word of its own although it is the only one
app.callback()(lambda: None)
app.command(help=(verify.__doc__ or "").replace("    Example", "    \b\n    Example"))(verify)
