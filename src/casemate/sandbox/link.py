"""The one task between a machine's stream and the wire; everybody else holds channels.

The stream's bytes come from hostile code. They are parsed by ``wire.Connection`` alone; the
first bad one ends the link with ProtocolViolation and the supervisor kills the machine. Each
turn reads a bounded piece and then lets the event loop go on; a guest whose bytes are costly to
parse (many small frames) gets smaller pieces and as much pause as its turn took: it slows only itself.

For as long as its user's processes are frozen it holds (``hold``): nothing may be begun that would wait for them.

A link outlives its machine's stream: ``hush`` and ``drained`` where that goes on in who is restored, else
``agree_to_rest``; then ``rest`` and the end of ``run``. The conversation goes on, byte by byte, when ``run`` carries it
over the next one.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import anyio

from casemate import errors, wire
from casemate.host import is_crowded
from casemate.sandbox.channel import Channel
from casemate.sandbox.unread import unread_by_peer, unread_by_us

READ_BYTES = 262_144  # one turn's share of the event loop: of an honest guest, under a millisecond of parsing
LEAST_READ_BYTES = 4096
TURN_S = 0.004  # an honest guest that sends a file stays below it
PING_EVERY_S = 5.0
PATIENCE = 6  # times as long may an agent be silent on a host that is crowded
LOOK_EVERY_S = 0.001  # whether the VMM has taken or sent more: nobody tells
E = TypeVar("E", bound=BaseException)


class Link:
    """Owns nothing: the machine owns the stream, the supervisor runs ``run`` and closes both."""

    def __init__(self, guest_id: str, *, silence_s: float) -> None:
        self.guest_id = guest_id
        self.failure: errors.CasemateError | None = None
        self.ended = asyncio.Event()
        self.last_traffic = time.monotonic()
        self.knows_copies = False  # its agent does, as it has said when it was introduced
        self._silence_s = silence_s
        self._asked_at = self.last_traffic  # since when an answer is waited for
        self._doubted = False  # somebody gave up waiting, and nothing was heard since
        self._channels: dict[int, Channel] = {}
        self._pongs: dict[bytes, asyncio.Event] = {}
        self._wake = asyncio.Event()
        self._speaking = asyncio.Event()  # not while it is hushed
        self._speaking.set()
        self._agreed = asyncio.Event()  # with the guest, that neither speaks
        self._holding = False  # from then on until it is known to be as before, or itself again
        self._sending = False
        self._resting = False
        self._still = False  # nobody expects an answer
        self._rested_at = self._rested_s = 0.0
        self._held: set[_Held] = set()  # who wants to open a channel meanwhile
        self._wanted = asyncio.Event()
        self._received = 0
        self._hellos: deque[_Hello] = deque()  # said, not answered yet
        self.begin()

    def consumed(self, number: int, count: int) -> None:
        self.connection.consumed(number, count)
        self.wake()

    def wake(self) -> None:
        self._wake.set()

    def begin(self, *, reopened: bool = False) -> None:
        """Start a conversation anew, *reopened* on a stream that an earlier one used; ``run`` carries it."""
        self.connection = wire.Connection(wire.Side.HOST, nonce=secrets.token_bytes(16))
        self.connection.synchronise(reopened=reopened)
        self.failure = None
        self._hellos.clear()
        self.ended.clear()
        self.wake()

    async def run(self, stream: socket.socket) -> None:
        """Carry bytes until the stream or the guest's honesty ends; then ``failure`` says why.

        Never raises for what the guest does; cancellation ends it at once.
        """
        if self._resting:
            self.last_traffic = self._asked_at = time.monotonic()
            self._rested_s += self.last_traffic - self._rested_at
            self._resting = self._doubted = False
            self.connection.go_on()
            self._speaking.set()  # who is held waits for the hand-shake, too
            self.wake()
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._write, stream)
                tasks.start_soon(self._watch)
                await self._read(stream)
                tasks.cancel_scope.cancel()
        except* errors.CasemateError as group:
            self._fail(_first(group))
        except* OSError as group:
            self._fail(
                errors.AgentSilent(
                    f"sandbox {self.guest_id}: its stream broke", evidence={"cause": repr(_first(group))}
                )
            )
        finally:
            if not self._resting:
                self._fail(errors.AgentSilent(f"sandbox {self.guest_id}: its stream was closed"))
                self.ended.set()

    async def hold(self, *, timeout_s: float) -> None:
        """Open no more channels for now but urgent ones; none is outstanding when this returns.

        Who wants one waits. Raises AgentSilent, the link's failure; then call ``speak``.
        """
        try:
            with anyio.fail_after(timeout_s):
                self._holding = True  # else there might always be another one
                while any(channel.unanswered for channel in self._channels.values()) or self._pongs:
                    await anyio.sleep(LOOK_EVERY_S)
        except TimeoutError as error:
            raise errors.AgentSilent(
                f"sandbox {self.guest_id}: it did not answer what it was asked within {timeout_s:g} s"
            ) from error
        if self.failure is not None:
            raise self.failure

    async def hush(self, stream: socket.socket, *, timeout_s: float) -> None:
        """Hold, and say nothing more for now: what was said is in the guest's memory.

        What comes from the guest is still taken. Raises AgentSilent when it does not listen; then call ``speak``.
        """
        await self.hold(timeout_s=timeout_s)
        try:
            with anyio.fail_after(timeout_s):
                self._speaking.clear()
                while self.failure is None and (self._sending or unread_by_peer(stream)):
                    await anyio.sleep(LOOK_EVERY_S)
        except TimeoutError as error:
            raise errors.AgentSilent(
                f"sandbox {self.guest_id}: it did not take what it was sent within {timeout_s:g} s"
            ) from error
        if self.failure is not None:
            raise self.failure

    async def agree_to_rest(self, *, timeout_s: float) -> None:
        """Hold, and agree with the guest that nobody says more: nothing is under way, either way, when this returns.

        Raises AgentSilent when it does not answer; then call ``speak``.
        """
        await self.hold(timeout_s=timeout_s)
        try:
            with anyio.fail_after(timeout_s):
                self._agreed.clear()
                self.connection.rest()
                self.wake()
                await self._agreed.wait()
        except TimeoutError as error:
            raise errors.AgentSilent(
                f"sandbox {self.guest_id}: it did not come to rest within {timeout_s:g} s"
            ) from error
        if self.failure is not None:
            raise self.failure
        self._speaking.clear()

    async def drained(self, stream: socket.socket, ask: Callable[[], Awaitable[object]], *, timeout_s: float) -> None:
        """Take all that a stopped machine's VMM still has for us; *ask* is a round trip to the VMM.

        Raises AgentSilent when it does not come to an end.
        """
        try:
            with anyio.fail_after(timeout_s):
                quiet = 0
                while quiet < 2 and self.failure is None:
                    before = self._received
                    await ask()
                    await anyio.sleep(LOOK_EVERY_S)
                    quiet = quiet + 1 if before == self._received and not unread_by_us(stream) else 0
        except TimeoutError as error:
            raise errors.AgentSilent(
                f"sandbox {self.guest_id}: its stopped machine went on sending for {timeout_s:g} s"
            ) from error

    def rest(self) -> None:
        """The end of ``run`` is not the end of the conversation."""
        if not self._resting:
            self._resting, self._rested_at = True, time.monotonic()

    def clock(self) -> float:
        """Seconds; it stands still while the guest's clocks do."""
        return (self._rested_at if self._resting else time.monotonic()) - self._rested_s

    def unhush(self) -> None:
        """It goes on, for who has a channel; it still holds."""
        self.last_traffic = self._asked_at = time.monotonic()  # it could not speak either
        self.connection.go_on()
        self._speaking.set()
        self.wake()

    def speak(self) -> None:
        """It goes on, for everybody."""
        self.unhush()
        self._holding = False
        for held in self._held:
            held.over.set()

    async def until_held(self) -> None:
        """Until somebody waits for it to speak again."""
        while all(held.over.is_set() for held in self._held):
            self._wanted.clear()
            await self._wanted.wait()

    def turn_away(self, failure: errors.CasemateError) -> None:
        """It rests on: who is held is told why. What is under way waits on."""
        for held in self._held:
            held.failure = failure
            held.over.set()

    async def _until_speaking(self) -> None:
        while self._holding:
            held = _Held()
            self._held.add(held)
            self._wanted.set()
            try:
                await held.over.wait()
            finally:
                self._held.discard(held)
            if held.failure is not None:
                raise held.failure

    def close(self, failure: errors.CasemateError | None = None) -> None:
        """The end of one that rests."""
        self._fail(failure or errors.AgentSilent(f"sandbox {self.guest_id}: it ended while it was suspended"))
        self.ended.set()

    def stand_still(self, still: bool) -> None:
        """Its machine is frozen, or thawed: a guest that cannot speak is not silent."""
        self._still = still
        self.last_traffic = self._asked_at = time.monotonic()

    async def handshake(self, hello: Mapping[str, Any], *, timeout_s: float) -> dict[str, Any]:
        """Introduce this clone to itself and return the agent's answer, unchecked. Again and again if need be.

        Raises AgentSilent after *timeout_s*; ProtocolViolation for what no agent sends.
        """
        if self.failure is not None:
            raise self.failure
        said = _Hello()
        self._hellos.append(said)  # stays when its time is over: a late answer is not the next one's
        self.connection.hello(dict(hello))
        self.wake()
        await self._until(said.over, timeout_s, "the hand-shake was not answered")
        if said.ready is None:
            raise self._dead()
        return said.ready

    async def ping(self, *, timeout_s: float = 10.0) -> float:
        """Milliseconds until the agent echoed a token. Raises AgentSilent."""
        token, answered, started = secrets.token_bytes(8), asyncio.Event(), time.perf_counter()
        self._pongs[token] = answered
        self._expect()
        try:
            self.connection.ping(token)
            self.wake()
            await self._until(answered, timeout_s, "a ping was not answered")
        finally:
            self._pongs.pop(token, None)
        if self.failure is not None:
            raise self.failure
        return (time.perf_counter() - started) * 1000

    @asynccontextmanager
    async def open(
        self,
        kind: str,
        params: Mapping[str, Any],
        *,
        timeout_s: float = 10.0,
        all_said: Mapping[int, bytes] | None = None,
        urgent: bool = False,
    ) -> AsyncIterator[Channel]:
        """A channel the agent has accepted; what is still open at the end of the block is reset.

        *all_said*, by sub: all that is ever said on it, small enough for its window; it goes along, which saves a
        round trip. *urgent*: also while it holds.

        Raises the error a denial stands for (ExecRefused, FileRefused, NotFound, NotSupported, …),
        AgentSilent when no answer came in *timeout_s*; a link at rest is waited for, and why it stays so is raised.
        """
        if not urgent:
            await self._until_speaking()
        if self.failure is not None:
            raise self.failure
        number = self.connection.open(kind, dict(params))
        self._expect()
        channel = self._channels[number] = Channel(self, number)
        if all_said is not None:
            channel.say_all(all_said)
        self.wake()
        try:
            try:
                with anyio.fail_after(timeout_s):
                    await channel.wait_answer()
            except TimeoutError as error:
                self._doubt()
                raise errors.AgentSilent(
                    f"sandbox {self.guest_id}: {kind} was not answered within {timeout_s:g} s",
                    hint="the guest may be out of CPU; try again or kill the sandbox",
                ) from error
            yield channel
        finally:
            channel.reset("closed")
            self._channels.pop(number, None)

    async def _until(self, event: asyncio.Event, timeout_s: float, what: str) -> None:
        try:
            with anyio.fail_after(timeout_s):
                await event.wait()
        except TimeoutError as error:
            self._doubt()
            raise errors.AgentSilent(f"sandbox {self.guest_id}: {what} within {timeout_s:g} s") from error

    def _expect(self) -> None:
        """An answer is waited for from now on, unless one was already."""
        if not self._channels and not self._doubted:
            self._asked_at = time.monotonic()

    def _doubt(self) -> None:
        if self.last_traffic < self._asked_at:
            self._doubted = True

    async def _read(self, stream: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        share = READ_BYTES
        # Closed under us when a machine ends before its link, as when its hand-shake was refused
        while stream.fileno() >= 0 and (data := await loop.sock_recv(stream, share)):
            self._received += len(data)
            self.last_traffic, began = time.monotonic(), time.thread_time()
            self._doubted = False
            for event in self.connection.receive(data):
                self._dispatch(event)
            self.wake()  # pongs and credits the parsing called for
            took_s = time.thread_time() - began
            costly = took_s > TURN_S
            share = max(share // 2, LEAST_READ_BYTES) if costly else min(share * 2, READ_BYTES)
            await asyncio.sleep(took_s if costly else 0)

    async def _write(self, stream: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._wake.wait()
            self._wake.clear()
            while stream.fileno() >= 0 and self._speaking.is_set() and (chunk := self.connection.outgoing()):
                self._sending = True  # not undone when cancelled: then a part of it may be lost
                await loop.sock_sendall(stream, chunk)
                self._sending = False

    async def _watch(self) -> None:
        """While anybody waits for the guest, or did so in vain, ask it now and then whether it lives."""
        while True:
            await anyio.sleep(min(PING_EVERY_S, self._silence_s / 2))
            if self._still or not self._speaking.is_set() or not (self._channels or self._doubted):
                continue
            silent_s = time.monotonic() - max(self.last_traffic, self._asked_at)
            # Where a hundred start at once an honest agent has to wait for its turn
            limit_s = self._silence_s
            if silent_s > limit_s and (silent_s > limit_s * PATIENCE or not is_crowded()):
                raise errors.AgentSilent(f"sandbox {self.guest_id}: its agent said nothing for {silent_s:.0f} s")
            self.connection.ping(bytes(8))
            self.wake()

    def _dispatch(self, event: wire.Event) -> None:
        match event:
            case wire.Opened():
                self.connection.deny(event.channel, "not-served", "this host serves no channels yet")
            case wire.Pong():
                if waiting := self._pongs.get(event.token):
                    waiting.set()
            case wire.Ready():
                if not self._hellos:
                    raise errors.ProtocolViolation(f"sandbox {self.guest_id}: a READY nobody asked for")
                said = self._hellos.popleft()
                said.ready = event.body
                said.over.set()
            case wire.Rested():
                self._agreed.set()
            case wire.Synced():
                pass  # the decoder checked the nonce
            case wire.Hello():
                raise errors.ProtocolViolation(f"sandbox {self.guest_id}: HELLO from a guest")
            case _:
                if channel := self._channels.get(event.channel):
                    channel.on_event(event)
                elif isinstance(event, wire.Data | wire.Message):  # for a channel we have left
                    self.connection.consumed(event.channel, event.size)

    def _dead(self) -> errors.CasemateError:
        return self.failure or errors.AgentSilent(f"sandbox {self.guest_id}: its stream is gone")

    def _fail(self, error: errors.CasemateError) -> None:
        self.failure = self.failure or error
        self.speak()  # who waits to speak learns that it is over
        for channel in self._channels.values():
            channel.on_failure(self.failure)
        self._agreed.set()
        for waiting in self._pongs.values():
            waiting.set()
        for said in self._hellos:
            said.over.set()


class _Held:
    """One who waits for a link at rest."""

    def __init__(self) -> None:
        self.failure: errors.CasemateError | None = None
        self.over = asyncio.Event()


class _Hello:
    """One HELLO on its way to its READY."""

    def __init__(self) -> None:
        self.ready: dict[str, Any] | None = None
        self.over = asyncio.Event()


def _first(group: BaseExceptionGroup[E]) -> E:
    found: BaseException = group
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found  # type: ignore[return-value]
