"""What a pool's member does before it is parked, so that its claim and its first exec are fast.

Under emulation what counts is that the code on the way is translated, and stays so: the guest's own rehearsal, which
runs an interpreter, comes first, since there is room for so many translations only; then what comes first to a user.
"""

from __future__ import annotations

from contextlib import suppress

from casemate.errors import ExecRefused
from casemate.sandbox import execs
from casemate.sandbox.handshake import Introduction
from casemate.sandbox.link import Link
from casemate.sandbox.starting import introduce

WARM_S = 30.0
TURNS = 2  # the first translates and copies pages, the second finds what that has left out


async def warm(link: Link, guest_id: str) -> None:
    """A zygote's fork, two programs as a user's are run, new spares, and the hand-shake of a claim; no trace is left.

    Raises GuestError, AgentSilent, ProtocolViolation.
    """
    await _control(link, "warm")
    with suppress(ExecRefused):  # an image without it
        for _ in range(TURNS):
            await _run(link, "/bin/true")
    await _control(link, "restock")
    for _ in range(TURNS):
        await introduce(link, Introduction(guest_id), WARM_S)


async def _control(link: Link, op: str) -> None:
    async with link.open("control", {"op": op}, timeout_s=WARM_S):
        pass


async def _run(link: Link, program: str) -> None:
    async with execs.start(link, execs.ExecSpec((program,), timeout_s=WARM_S)) as running:
        while isinstance(await running.read(), execs.Output):
            pass
    await execs.remove(link, running.exec_id)
