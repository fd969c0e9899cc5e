"""One conversation with the agent, as its owner and as the link see it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from casemate import errors, wire
from casemate.sandbox.denials import denial, giving_up

if TYPE_CHECKING:
    from casemate.sandbox.link import Link

ChannelEvent = (
    wire.Data | wire.Message | wire.Finished | wire.Accepted | wire.Denied | wire.Writable | wire.Reset | wire.Closed
)


class Channel:
    """One conversation with the agent. Used by one task at a time; made by ``Link.open`` only."""

    def __init__(self, link: Link, number: int) -> None:
        self._link = link
        self._number = number
        self._arrived: deque[wire.Data | wire.Message | None] = deque()
        self._changed = asyncio.Event()
        self._writable = asyncio.Event()
        self._answer: dict[str, Any] | None = None
        self._failure: errors.CasemateError | None = None
        self._closed = False

    @property
    def unanswered(self) -> bool:
        """Whether the agent has neither accepted nor refused it yet."""
        return self._answer is None and self._failure is None

    @property
    def accepted(self) -> dict[str, Any]:
        """What the agent said when it accepted."""
        return self._answer or {}

    def clock(self) -> float:
        return self._link.clock()

    async def receive(self) -> wire.Data | wire.Message | None:
        """The next piece in order; None when the guest has said all. Safe to cancel.

        Raises GuestError when the channel or the whole link died.
        """
        await self.wait_arrived()
        item = self._arrived[0]
        if item is None:
            return None  # stays: every later call says so too
        self._arrived.popleft()
        self._link.consumed(self._number, item.size)
        return item

    async def wait_arrived(self) -> None:
        """Until ``receive`` would return at once. Safe to cancel; raises what it raises."""
        while not self._arrived:
            if self._failure is not None:
                raise self._failure
            self._changed.clear()
            await self._changed.wait()

    async def send(self, data: bytes | memoryview, sub: int = 1) -> None:
        """Hand *data* to the guest; waits while its window is full. Cancelled: a part may have been sent."""
        view = memoryview(data)
        while view:
            self._check_sendable()
            self._writable.clear()
            taken = self._link.connection.send(self._number, sub, view)
            if taken:
                self._link.wake()
                view = view[taken:]
            else:
                await self._writable.wait()

    def say_all(self, said: Mapping[int, bytes]) -> None:
        """Hand over *said*, by sub, which must fit an untouched window, and say that no more comes."""
        for sub, data in said.items():
            if self._link.connection.send(self._number, sub, data) < len(data):
                raise ValueError(f"{sum(map(len, said.values()))} bytes do not fit a window")
        self.finish()

    @property
    def arrived(self) -> Sequence[wire.Data | wire.Message | None]:
        """What ``receive`` would return at once."""
        return self._arrived

    async def send_message(self, body: Mapping[str, Any]) -> None:
        """Hand one JSON object to the guest."""
        self._check_sendable()
        self._link.connection.send_message(self._number, dict(body))
        self._link.wake()

    def finish(self) -> None:
        """Say that no more comes from this side."""
        if not self._closed and self._failure is None:
            self._link.connection.finish(self._number)
            self._link.wake()

    def reset(self, code: str, hint: str = "") -> None:
        """End the channel in both directions at once; what was under way is lost."""
        if not self._closed and self._failure is None:
            self._link.connection.reset(self._number, code, hint)
            self._link.wake()
        self._closed = True
        self._writable.set()

    def _check_sendable(self) -> None:
        if self._failure is not None:
            raise self._failure
        if self._closed:
            raise errors.StateConflict(f"channel {self._number} is closed")

    # what the link's task calls

    def on_event(self, event: ChannelEvent) -> None:
        match event:
            case wire.Data() | wire.Message():
                self._arrived.append(event)
            case wire.Finished():
                self._arrived.append(None)
            case wire.Accepted():
                self._answer = event.body
            case wire.Denied():
                self.on_failure(denial(event))
            case wire.Writable():
                self._writable.set()
            case wire.Reset():
                self.on_failure(giving_up(event))
            case wire.Closed():
                self._closed = True
                self._writable.set()  # who still wants to send learns that nobody listens
        self._changed.set()

    def on_failure(self, error: errors.CasemateError) -> None:
        self._failure = self._failure or error
        self._changed.set()
        self._writable.set()

    async def wait_answer(self) -> None:
        while self._answer is None:
            if self._failure is not None:
                raise self._failure
            self._changed.clear()
            await self._changed.wait()
