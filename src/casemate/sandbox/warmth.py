"""What a pool's member does before it is parked, so that its claim and its first exec are fast.

Under emulation what counts is that the code on the way is translated, and stays so: the guest's own rehearsal, which
runs an interpreter, comes first, since there is room for so many translations only; then what comes first to a user.
"""

from __future__ import annotations

import secrets
from contextlib import suppress
from dataclasses import replace

from casemate.errors import ExecRefused, NotSupported
from casemate.sandbox import cells, contexts, execs
from casemate.sandbox.cell_ends import CellEnded
from casemate.sandbox.handshake import Introduction
from casemate.sandbox.link import Link
from casemate.sandbox.starting import introduce

WARM_S = 30.0
TURNS = 2  # the first translates and copies pages, the second finds what that has left out


async def warm(link: Link, guest_id: str, *, copy: bool = False) -> None:
    """A zygote's fork, cells and programs as a user's are run, new spares, and the hand-shake of a claim.

    No trace is left: the hand-shake makes the agent forget what was run. In a *copy* of a living sandbox nothing is
    forgotten, so no cell is run there: those that have ended are its user's to read.

    Raises GuestError, AgentSilent, ProtocolViolation.
    """
    await _control(link, "warm")
    if not copy:
        with suppress(NotSupported):  # an image without Python
            await _run_cells(link)
    with suppress(ExecRefused):  # an image without it
        for _ in range(TURNS):
            await _run(link, "/bin/true")
    await _control(link, "restock")
    for _ in range(TURNS):
        await introduce(link, Introduction(guest_id, copy=copy), WARM_S)


async def _control(link: Link, op: str) -> None:
    async with link.open("control", {"op": op}, timeout_s=WARM_S):
        pass


async def _run_cells(link: Link) -> None:
    """In a context of their own: the default one is the user's, and untouched."""
    made = await contexts.create(link, contexts.ContextSpec())
    spec = cells.RunCell(made.context_id, timeout_s=WARM_S)
    for _ in range(TURNS):
        async with cells.run(link, "1 + 1", replace(spec, cell_id=secrets.token_hex(8))) as cell:
            while not isinstance(await cell.read(), CellEnded):
                pass
    await contexts.remove(link, made.context_id)


async def _run(link: Link, program: str) -> None:
    async with execs.start(link, execs.ExecSpec((program,), timeout_s=WARM_S)) as running:
        while isinstance(await running.read(), execs.Output):
            pass
    await execs.remove(link, running.exec_id)
