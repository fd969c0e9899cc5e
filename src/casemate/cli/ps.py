"""``casemate ps``: the sandboxes there are."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from casemate.cli.options import labels_of
from casemate.cli.table import age, mib, print_table

if TYPE_CHECKING:
    from casemate.sdk import SandboxInfo

HEAD = ("ID", "NAME", "IMAGE", "STATE", "ISOLATION", "MEMORY", "AGE")


def ps(
    include_ended: Annotated[bool, typer.Option("--all", "-a", help="Also what ended within the last day.")] = False,
    label: Annotated[
        list[str] | None, typer.Option("--label", metavar="K=V", help="Only those with this label; may be repeated.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """List the sandboxes.

    Example:
      casemate ps --json | python3 -m json.tool
    """
    labels = labels_of(label or [])
    from casemate.sdk import Sandbox

    found = Sandbox.list(all=include_ended, labels=labels)
    if as_json:
        print(json.dumps({"sandboxes": [dict(info.raw) for info in found]}))
        return
    rows = []
    for info in found:
        state = f"{info.state} ({why})" if (why := _why(info)) else info.state
        memory = f"{info.memory_mib} MiB"
        rows.append((info.id, info.name or "-", info.image, state, info.isolation, memory, age(info.created_at)))
    print_table(HEAD, rows)


def _why(info: SandboxInfo) -> str | None:
    """What there is to say about its state in a word or two."""
    if info.state_reason is not None:
        return info.state_reason.code
    if info.suspended is not None:
        return mib(info.suspended.stored_bytes)
    return "parked" if info.parked else None
