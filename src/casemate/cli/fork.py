"""``casemate fork``: running copies of a sandbox as it is at this moment."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from casemate.cli import options


def fork(
    ref: Annotated[str, typer.Argument(metavar="SANDBOX", help="Its id, the beginning of it, or its name.")],
    count: Annotated[int, typer.Option("--count", metavar="N", help="How many, up to 64.")] = 1,
    label: Annotated[
        list[str] | None, typer.Option("--label", metavar="K=V", help="A note on them, beside those it has.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Make running copies of a sandbox and print their ids, one on a line.

    Variables, files and processes are in each copy; what is changed in one shows in no other. The sandbox stands still
    while its memory is saved, and goes on as before. All copies are made, or none.

    Example:
      casemate fork work --count 5
    """
    labels = options.labels_of(label) if label else None
    from casemate.cli.progress import first_use
    from casemate.sdk import Client, Sandbox

    with Client() as client:
        parent = Sandbox.connect(ref, client=client)
        with first_use() as tell:
            copies = parent.fork(count, labels=labels, progress=tell)
    if as_json:
        print(json.dumps({"sandboxes": [dict(copy.info.raw) for copy in copies]}))
        return
    for copy in copies:
        print(copy.id)
