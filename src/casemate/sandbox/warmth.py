"""What a pool's member does before it is parked, so that its first exec and its first cell are fast."""

from __future__ import annotations

from casemate.sandbox.link import Link

WARM_S = 30.0


async def warm(link: Link) -> None:
    """The guest spawns one program and forks one interpreter, and has new ones waiting when this returns.

    Raises GuestError, AgentSilent.
    """
    async with link.open("control", {"op": "warm"}, timeout_s=WARM_S):
        pass
