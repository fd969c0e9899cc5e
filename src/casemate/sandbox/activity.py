"""What work there is in a guest, as its agent says it: whether it may be put to sleep, and when it must be awake again.

Asking is not using: it does not put off the idle time-out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from casemate.sandbox import parse
from casemate.sandbox.link import Link

ANSWER_S = 5.0


@dataclass(frozen=True, slots=True)
class Activity:
    """No more than a hint: root in the guest can make the agent say anything. It only ever lies about its own sleep.

    *execs_running* leaves out those on a terminal. *user_cpu_ms* counts all that user processes ever used, so the
    difference of two is what matters; keeping programs ready adds some milliseconds after each exec. *next_timer_ms*:
    until the first timer of a user's process is due; 0 where the guest has too many to say, None where there is none.
    """

    execs_running: int
    terminals_running: int
    cells_running: int
    user_cpu_ms: int
    next_timer_ms: int | None

    @classmethod
    def from_agent(cls, body: Mapping[str, Any]) -> Self:
        """Raises ProtocolViolation."""
        due = body.get("next_timer_ms")
        return cls(
            execs_running=parse.whole(body, "execs_running"),
            terminals_running=parse.whole(body, "terminals_running"),
            cells_running=parse.whole(body, "cells_running"),
            user_cpu_ms=parse.whole(body, "user_cpu_ms"),
            next_timer_ms=None if due is None else parse.whole(body, "next_timer_ms"),
        )

    @property
    def is_work(self) -> bool:
        """Whether something runs that somebody started and waits for: an exec or a cell, sleeping or not."""
        return self.execs_running > 0 or self.cells_running > 0


async def ask(link: Link) -> Activity:
    """How it is now. Raises GuestError when no answer came in time; ProtocolViolation for what no agent says."""
    async with link.open("control", {"op": "activity"}, timeout_s=ANSWER_S) as channel:
        return Activity.from_agent(channel.accepted)
