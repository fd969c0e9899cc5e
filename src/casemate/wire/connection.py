"""Channels over frames, with credit. Sans I/O: bytes in become events, calls become bytes to send."""

from __future__ import annotations

import json
from collections import deque
from enum import Enum
from typing import Any

from casemate.errors import ProtocolViolation, StateConflict
from casemate.wire import frames
from casemate.wire.events import (
    Accepted, Closed, Data, Denied, Event, Finished, Hello, Message, Opened, Pong, Ready, Reset, Synced, Writable,
)  # fmt: skip
from casemate.wire.frames import MAX_PAYLOAD

WINDOW = 262_144
MAX_CHANNELS = 256
MAX_ID = 2**32 - 2
BURST_BYTES = 131_072
PREAMBLE = bytes(MAX_PAYLOAD + frames.HEADER_BYTES)


class Side(Enum):
    HOST = 1
    GUEST = 2


class _Channel:
    __slots__ = ("accepted", "fin_in", "fin_out", "owed", "queue", "received", "sendable", "starved")

    def __init__(self, window: int) -> None:
        self.sendable = window  # what the peer still has room for
        self.received = window  # what we have still room for
        self.owed = 0  # consumed, not yet given back
        self.queue: deque[bytes] = deque()
        self.accepted = False
        self.fin_in = self.fin_out = False
        self.starved = False


class Connection:
    def __init__(
        self, side: Side, nonce: bytes | None = None, window: int = WINDOW, max_channels: int = MAX_CHANNELS
    ) -> None:
        self._side = side
        self._nonce = nonce
        self._window = window
        self._max_channels = max_channels
        self._decoder = frames.Decoder(nonce if side is Side.HOST else None)
        self._urgent: deque[bytes] = deque()
        self._forget()

    def _forget(self) -> None:
        self._channels: dict[int, _Channel] = {}
        self._ready: deque[int] = deque()
        self._next = 1 if self._side is Side.HOST else 2
        self._highest_peer = 0

    # ------------------------------------------------------------------ sending

    def synchronise(self, *, reopened: bool = False) -> None:
        """Queue the beginning of a connection (host only)."""
        assert self._nonce is not None, "a host has a nonce"
        self._urgent.append((PREAMBLE if reopened else b"") + frames.sync(self._nonce))

    def hello(self, body: dict[str, Any]) -> None:
        self._urgent.append(frames.pack(frames.HELLO, 0, dump(body)))

    def ready(self, body: dict[str, Any]) -> None:
        self._urgent.append(frames.pack(frames.READY, 0, dump(body)))

    def ping(self, token: bytes) -> None:
        self._urgent.appendleft(frames.pack(frames.PING, 0, token))

    def open(self, kind: str, params: dict[str, Any]) -> int:
        """Raises StateConflict when max_channels are open."""
        if len(self._channels) >= self._max_channels:
            raise StateConflict(f"{self._max_channels} channels are open", hint="close some")
        number = self._next
        self._next += 2
        self._channels[number] = _Channel(self._window)
        self._urgent.append(frames.pack(frames.OPEN, number, dump(params | {"kind": kind})))
        return number

    def accept(self, number: int, body: dict[str, Any] | None = None) -> None:
        if channel := self._channels.get(number):
            channel.accepted = True
            self._urgent.append(frames.pack(frames.ACCEPT, number, dump(body or {})))

    def deny(self, number: int, code: str, hint: str = "", **more: Any) -> None:
        if self._channels.pop(number, None) is not None:
            self._urgent.append(frames.pack(frames.DENY, number, dump({**more, "code": code, "hint": hint})))

    def send_message(self, number: int, body: dict[str, Any]) -> None:
        """Messages may overdraw the window by nobody's leave but ours: they are few; a peer allows one frame more."""
        if channel := self._channels.get(number):
            payload = dump(body)
            channel.sendable -= len(payload)
            self._queue(number, channel, frames.pack(frames.DATA, number, payload, 0))

    def send(self, number: int, sub: int, data: bytes | memoryview) -> int:
        channel = self._channels.get(number)
        if channel is None or channel.fin_out:
            return len(data)
        taken = min(len(data), channel.sendable)
        if taken <= 0:
            channel.starved = True
            return 0
        for at in range(0, taken, MAX_PAYLOAD):
            piece = bytes(data[at : min(at + MAX_PAYLOAD, taken)])
            self._queue(number, channel, frames.pack(frames.DATA, number, piece, sub))
        channel.sendable -= taken
        if taken < len(data):
            channel.starved = True
        return taken

    def writable(self, number: int) -> int:
        channel = self._channels.get(number)
        return max(channel.sendable, 0) if channel else 0

    def finish(self, number: int) -> None:
        channel = self._channels.get(number)
        if channel is not None and not channel.fin_out:
            channel.fin_out = True
            self._queue(number, channel, frames.pack(frames.FIN, number))

    def reset(self, number: int, code: str, hint: str = "") -> None:
        if self._channels.pop(number, None) is not None:
            self._urgent.append(frames.pack(frames.RESET, number, dump({"code": code, "hint": hint})))

    def consumed(self, number: int, count: int) -> None:
        channel = self._channels.get(number)
        if channel is None:
            return
        channel.owed += count
        if channel.owed * 4 >= self._window and not channel.fin_in:
            self._urgent.append(frames.pack(frames.CREDIT, number, channel.owed.to_bytes(4, "big")))
            channel.received += channel.owed
            channel.owed = 0

    def _queue(self, number: int, channel: _Channel, frame: bytes) -> None:
        if not channel.queue:
            self._ready.append(number)
        channel.queue.append(frame)

    def outgoing(self) -> bytes:
        """The next bytes to send, b"" when there are none: what is urgent, then a turn for each channel."""
        out: list[bytes] = []
        size = 0
        while self._urgent and size < BURST_BYTES:
            out.append(self._urgent.popleft())
            size += len(out[-1])
        while self._ready and size < BURST_BYTES:
            number = self._ready.popleft()
            channel = self._channels.get(number)
            if channel is None or not channel.queue:
                continue
            out.append(channel.queue.popleft())
            size += len(out[-1])
            if channel.queue:
                self._ready.append(number)
            elif channel.fin_out and channel.fin_in:
                del self._channels[number]
        return out[0] if len(out) == 1 else b"".join(out)

    # ---------------------------------------------------------------- receiving

    def receive(self, data: bytes) -> list[Event]:
        """What *data* says. Raises ProtocolViolation for what no honest peer sends."""
        events: list[Event] = []
        for kind, number, sub, payload in self._decoder.feed(data):
            if number:
                self._on_channel(kind, number, sub, payload, events)
            else:
                self._on_connection(kind, payload, events)
        return events

    def _on_connection(self, kind: int, payload: bytes, events: list[Event]) -> None:
        if kind == frames.SYNC:
            if self._side is Side.GUEST:
                self._forget()
                self._urgent.clear()
                self._urgent.append(frames.sync(payload))
            elif payload != self._nonce:
                raise ProtocolViolation("a SYNC with another nonce")
            events.append(Synced(payload))
        elif kind == frames.PING and len(payload) == 8:
            if len(self._urgent) > 4 * self._max_channels:
                raise ProtocolViolation("a flood of pings")
            self._urgent.append(frames.pack(frames.PONG, 0, payload))
        elif kind == frames.PONG and len(payload) == 8:
            events.append(Pong(payload))
        elif kind == frames.HELLO:
            events.append(Hello(load(payload)))
        elif kind == frames.READY:
            events.append(Ready(load(payload)))
        else:
            raise ProtocolViolation(f"a frame of kind {kind} on channel 0")

    def _on_channel(self, kind: int, number: int, sub: int, payload: bytes, events: list[Event]) -> None:
        if kind == frames.OPEN:
            self._on_open(number, payload, events)
            return
        channel = self._channels.get(number)
        if channel is None:
            if number > max(self._highest_peer, self._next):
                raise ProtocolViolation(f"channel {number} was never opened")
            return  # it was reset while this was under way
        if kind == frames.DATA:
            self._on_data(number, channel, sub, payload, events)
        elif kind == frames.CREDIT and len(payload) == 4:
            channel.sendable += int.from_bytes(payload, "big")
            if channel.sendable > self._window:
                raise ProtocolViolation("credit over the window")
            if channel.starved and channel.sendable > 0:
                channel.starved = False
                events.append(Writable(number))
        elif kind == frames.FIN and not channel.fin_in:
            channel.fin_in = True
            events.append(Finished(number))
            if channel.fin_out and not channel.queue:
                del self._channels[number]
                events.append(Closed(number))
        elif kind == frames.ACCEPT and not channel.accepted:
            channel.accepted = True
            events.append(Accepted(number, load(payload)))
        elif kind in (frames.DENY, frames.RESET):
            del self._channels[number]
            body = load(payload)
            code, hint = str(body.get("code", "unknown")), str(body.get("hint", ""))
            if kind == frames.DENY:
                events.append(Denied(number, code, hint, body))
            else:
                events.append(Reset(number, code, hint))
        else:
            raise ProtocolViolation(f"a frame of kind {kind} on channel {number}")

    def _on_open(self, number: int, payload: bytes, events: list[Event]) -> None:
        parity = 0 if self._side is Side.HOST else 1
        if number % 2 != parity or number <= self._highest_peer or number > MAX_ID:
            raise ProtocolViolation(f"channel {number} cannot be opened")
        if len(self._channels) >= self._max_channels:
            raise ProtocolViolation("too many channels")
        self._highest_peer = number
        params = load(payload)
        kind = params.pop("kind", None)
        if not isinstance(kind, str):
            raise ProtocolViolation("a channel without a kind")
        self._channels[number] = _Channel(self._window)
        events.append(Opened(number, kind, params))

    def _on_data(self, number: int, channel: _Channel, sub: int, payload: bytes, events: list[Event]) -> None:
        channel.received -= len(payload)
        if channel.fin_in or sub > 2 or channel.received < (-MAX_PAYLOAD if sub == 0 else 0):
            raise ProtocolViolation(f"channel {number}: more data than its window holds")
        if sub:
            events.append(Data(number, sub, payload))
        else:
            events.append(Message(number, load(payload)))
            self.consumed(number, len(payload))


def dump(body: dict[str, Any]) -> bytes:
    payload = json.dumps(body, separators=(",", ":")).encode()
    if len(payload) > MAX_PAYLOAD:
        raise ValueError(f"a message of {len(payload)} bytes; at most {MAX_PAYLOAD}")
    return payload


def load(payload: bytes) -> dict[str, Any]:
    try:
        body = json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise ProtocolViolation("a body that is not JSON") from error
    if not isinstance(body, dict):
        raise ProtocolViolation("a body that is not an object")
    return body
