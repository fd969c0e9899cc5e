"""``casemate suspend``: to the disk with it, and its memory is free."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from casemate.cli.each import each
from casemate.cli.table import mib

if TYPE_CHECKING:
    from casemate.sdk import Sandbox


def suspend(
    refs: Annotated[list[str], typer.Argument(metavar="SANDBOX...", help="Ids, their beginnings, or names.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Store sandboxes with all that runs in them, and give their memory back.

    Says of each what is stored, beside what its guest had changed: memory (dirty) and disk (written); how long it
    stood still for that, and what it took in all. The next call resumes it, unless it was made with --no-auto-resume.
    Goes on past one that cannot be suspended, which runs on; the exit status is then 1.

    Example:
      casemate suspend work
    """
    raise typer.Exit(each(refs, _suspended, as_json))


def _suspended(sandbox: Sandbox) -> str:
    facts = sandbox.suspend()
    ratio = f", {facts.ratio:.2f} times as much" if facts.ratio is not None else ""
    return (
        f"{sandbox.id} stored {mib(facts.stored_bytes, 1)} of {mib(facts.dirty_bytes, 1)} dirty and "
        f"{mib(facts.written_bytes, 1)} written{ratio}; paused {facts.pause_ms:.0f} ms, took {facts.took_ms:.0f} ms"
    )
