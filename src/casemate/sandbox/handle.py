"""A sandbox as its users hold it: they ask, and its supervisor acts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from casemate.sandbox.link import Link
from casemate.sandbox.spec import SandboxInfo, SandboxSpec, StateReason
from casemate.sandbox.states import Action, Reason, go
from casemate.vmm import Machine


@dataclass(eq=False)
class Handle:
    """A sandbox as its users see it: what it is, how to talk to it, how to ask for its end."""

    info: SandboxInfo
    spec: SandboxSpec
    actor: str = "host"  # whose key asked for it
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    _link: Link | None = None
    _machine: Machine | None = None
    _stop: asyncio.Event = field(default_factory=asyncio.Event)
    _why: StateReason | None = None
    _born_at: float = field(default_factory=lambda: time.clock_gettime(time.CLOCK_BOOTTIME))
    _used_at: float = field(default_factory=time.monotonic)
    _busy: int = 0
    _recording: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def link(self) -> Link:
        """Raises StateConflict unless the sandbox is running; the link's own failure if it has one."""
        go(self.info.state, Action.USE, f"sandbox {self.info.id}")
        assert self._link is not None, "a running sandbox has a link"
        return self._link

    async def console(self) -> bytes:
        return await self._machine.console() if self._machine else b""

    async def console_since(self, offset: int) -> tuple[bytes, int]:
        """What the console said from its byte *offset* on, as far as it is still held, and the offset after it."""
        if self._machine is None:
            return b"", offset
        machine = self._machine
        held = await machine.console()
        fresh = machine.console_written - offset
        return held[-fresh:] if fresh > 0 else b"", machine.console_written

    def begin(self) -> None:
        """Its life for who uses it begins now, whenever it was made."""
        self._born_at = time.clock_gettime(time.CLOCK_BOOTTIME)
        self.touch()

    @property
    def in_use(self) -> bool:
        """Whether a call is under way."""
        return self._busy > 0

    def touch(self) -> None:
        """Somebody used it: the idle time starts again."""
        self._used_at = time.monotonic()

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Work is under way: it is not idle until the block ends."""
        self._busy += 1
        try:
            yield
        finally:
            self._busy -= 1
            self.touch()

    def ask_stop(self, reason: Reason, message: str) -> None:
        """Request the end; the first reason given stays. Returns at once."""
        self._why = self._why or StateReason(reason.value, message)
        self._stop.set()

    async def kill(self, reason: Reason = Reason.KILLED, message: str = "killed by its user") -> SandboxInfo:
        """End it and wait until nothing of it is left. Safe to call twice, also at once."""
        self.ask_stop(reason, message)
        await self.ended.wait()
        return self.info

    def overdue(self) -> StateReason | None:
        """Why the sandbox's time is up, if it is."""
        limit_s, idle_s = self.spec.max_duration_s, self.spec.idle_timeout_s
        lived_s = time.clock_gettime(time.CLOCK_BOOTTIME) - self._born_at  # created_at is the wall's, which may jump
        if limit_s is not None and lived_s > limit_s:
            return StateReason(Reason.MAX_DURATION.value, f"lived for its max_duration_s of {limit_s:g} s")
        unused_s = time.monotonic() - self._used_at
        if self.spec.on_idle == "kill" and idle_s is not None and not self._busy and unused_s > idle_s:
            return StateReason(Reason.IDLE.value, f"not used for its idle_timeout_s of {idle_s:g} s")
        return None
