"""What one sandbox takes: the kernel's word on its VMM, and the agent's on the guest.

Looking is not using: it does not put off the idle time-out, and wakes nobody.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import anyio

from casemate import errors
from casemate.sandbox import parse
from casemate.sandbox.handle import Handle
from casemate.sandbox.states import Reason

ANSWER_S = 2.0
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
CPU_FIELDS = slice(11, 13)  # utime and stime, counted from the state. Source: proc_pid_stat(5)


@dataclass(frozen=True, slots=True)
class Guest:
    """As the agent says it, so no more than a hint: root in the guest can make it say anything."""

    memory_total_bytes: int
    memory_available_bytes: int
    user_memory_bytes: int | None
    user_processes: int | None
    execs: int
    execs_running: int

    @classmethod
    def from_agent(cls, body: Mapping[str, Any]) -> Self:
        """Raises ProtocolViolation."""
        user = parse.mapping(body, "user")
        return cls(
            memory_total_bytes=parse.whole(body, "memory_total_bytes"),
            memory_available_bytes=parse.whole(body, "memory_available_bytes"),
            user_memory_bytes=parse.whole(user, "memory_bytes") if "memory_bytes" in user else None,
            user_processes=parse.whole(user, "processes") if "processes" in user else None,
            execs=parse.whole(body, "execs"),
            execs_running=parse.whole(body, "execs_running"),
        )


@dataclass(frozen=True, slots=True)
class Stats:
    """*cpu_s* is the VMM's processor time since its start, *memory_private_bytes* what it alone holds (anonymous).

    None where the kernel did not say; *guest* is None where the agent did not answer in time, or is frozen: *parked*.
    """

    sandbox: str
    pid: int | None
    sampled_at: float
    cpu_s: float | None
    memory_private_bytes: int | None
    guest: Guest | None
    parked: bool = False


async def sample(handle: Handle) -> Stats:
    """How it is now. Raises StateConflict unless it is running; a guest that lies loses its machine."""
    link, pid = handle.link, handle.info.pid
    guest: Guest | None = None
    try:
        if not handle.parked:
            async with link.open("control", {"op": "stats"}, timeout_s=ANSWER_S) as channel:
                guest = Guest.from_agent(channel.accepted)
    except errors.ProtocolViolation as error:
        handle.ask_stop(Reason.PROTOCOL_VIOLATION, error.message)
        raise
    except (errors.GuestError, errors.VmmError):
        if link.failure is not None:
            raise
    cpu_s, memory = await anyio.to_thread.run_sync(_of_process, pid) if pid is not None else (None, None)
    return Stats(handle.info.id, pid, time.time(), cpu_s, memory, guest, handle.parked)


def _of_process(pid: int) -> tuple[float | None, int | None]:
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:  # it has just ended, or /proc hides it from us
        return None, None
    cpu_s = sum(map(int, after_name[CPU_FIELDS])) / TICKS_PER_S
    anonymous = next((line.split()[1] for line in status.splitlines() if line.startswith("RssAnon:")), None)
    return cpu_s, int(anonymous) * 1024 if anonymous else None
