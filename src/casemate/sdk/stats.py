"""What a sandbox takes at one moment, parsed from the daemon's JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class GuestStats:
    """The agent's account of the guest's inside; execs are those it remembers."""

    memory_total_bytes: int
    memory_available_bytes: int
    execs: int
    execs_running: int


@dataclass(frozen=True, slots=True)
class SandboxStats:
    """*cpu_s* is processor time since the start, *memory_private_bytes* what its VMM alone holds.

    None where the host does not say; *guest* is None where the agent did not answer in time.
    """

    sandbox: str
    pid: int | None
    sampled_at: float
    cpu_s: float | None
    memory_private_bytes: int | None
    guest: GuestStats | None

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> SandboxStats:
        guest = body["guest"]
        names = ("memory_total_bytes", "memory_available_bytes", "execs", "execs_running")
        return cls(
            sandbox=body["sandbox"],
            pid=body["pid"],
            sampled_at=body["sampled_at"],
            cpu_s=body["cpu_s"],
            memory_private_bytes=body["memory_private_bytes"],
            guest=GuestStats(*(guest[name] for name in names)) if guest else None,
        )

    def cpu_percent_since(self, earlier: SandboxStats) -> float | None:
        """Of one processor, between the two moments."""
        past_s = self.sampled_at - earlier.sampled_at
        if self.cpu_s is None or earlier.cpu_s is None or past_s <= 0:
            return None
        return 100 * (self.cpu_s - earlier.cpu_s) / past_s
