"""``casemate resume``: a suspended sandbox goes on."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from casemate.cli.each import each

if TYPE_CHECKING:
    from casemate.sdk import Sandbox


def resume(
    refs: Annotated[list[str], typer.Argument(metavar="SANDBOX...", help="Ids, their beginnings, or names.")],
    cold: Annotated[bool, typer.Option("--cold", help="Boot it from its disk; what was in memory is lost.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Let suspended sandboxes go on where they stood still.

    Says what it took. --cold is for one whose memory cannot be restored any more, as after an upgrade of QEMU.
    Goes on past one that cannot be resumed, which stays suspended; the exit status is then 1.

    Example:
      casemate resume work
    """
    raise typer.Exit(each(refs, partial(_resumed, cold=cold), as_json))


def _resumed(sandbox: Sandbox, *, cold: bool) -> str:
    if sandbox.info.state == "running":
        return f"{sandbox.id} runs already"
    began = time.perf_counter()
    sandbox.resume(cold=cold)
    how = "booted from its disk, nothing of its memory is left" if cold else "resumed"
    return f"{sandbox.id} {how}; took {(time.perf_counter() - began) * 1000:.0f} ms"
