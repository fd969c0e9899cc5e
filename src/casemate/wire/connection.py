"""Channels over frames, with credit. Sans I/O: bytes in become events, calls become bytes to send.

    connection = Connection(Side.GUEST)                     # host: Connection(Side.HOST, nonce), synchronise()
    for event in connection.receive(stream.recv(65536)):    # raises ProtocolViolation: give the stream up
        match event: ...                                    # answer with the methods below
    while chunk := connection.outgoing():                   # after every receive and every call
        stream.sendall(chunk)

What an owner must do: answer ``Opened`` with accept or deny; give ``Data`` and ``Message`` back with
``consumed(event.channel, event.size)``; put no clock in between a ``ping`` and ``outgoing``. Calls for a
channel that is gone do nothing (its Reset, Denied or Closed is on its way); ``send`` then takes all.
"""

from __future__ import annotations

from collections import deque
from enum import Enum
from typing import Any

from casemate.errors import ProtocolViolation, StateConflict
from casemate.wire import frames
from casemate.wire.bodies import dump, load
from casemate.wire.channel import MIN_COST, Channel, cost
from casemate.wire.events import (
    Accepted,
    Closed,
    Data,
    Denied,
    Event,
    Finished,
    Hello,
    Message,
    Opened,
    Pong,
    Ready,
    Reset,
    Rested,
    Synced,
    Writable,
)
from casemate.wire.frames import HEADER, MAX_PAYLOAD, pack

WINDOW = 262_144
MAX_CHANNELS = 256  # opened by one side
MAX_PINGS = 64  # unanswered
BURST_BYTES = 65_536  # of one outgoing(): a ping waits for no more than this
TURN_BYTES = 16_384  # of one channel in a burst while others wait
_LAST_ID = 2**32 - 2
_LATE_FRAMES = 64  # that are no DATA and were under way when a channel died


class Side(Enum):
    HOST = 1  # opens odd channels and begins connections
    GUEST = 2  # opens even ones


class Connection:
    """One end. Its memory: what the owner holds aside, at most channels times two windows."""

    def __init__(
        self, side: Side, nonce: bytes | None = None, window: int = WINDOW, max_channels: int = MAX_CHANNELS
    ) -> None:
        """*nonce*: 16 fresh random bytes, host only. *window* and *max_channels* are the same on both ends."""
        if window < 2 * MAX_PAYLOAD:
            raise ValueError(f"a window of {window} bytes; at least {2 * MAX_PAYLOAD}")
        self._side = side
        self._nonce = nonce
        self._window = window
        self._max_channels = max_channels
        self._first: deque[bytes] = deque()  # the SYNC
        self._violation: str | None = None
        self.lost()

    def lost(self) -> None:
        """An agent's stream broke off: forget the connection, half a frame included, and hunt for a SYNC."""
        self._decoder = frames.Decoder(None if self._side is Side.GUEST else self._nonce or bytes(16))
        self._violation = None
        self._forget()
        self._synced = False

    def _forget(self) -> None:
        self._channels: dict[int, Channel] = {}
        self._next = 1 if self._side is Side.HOST else 2
        self._highest = 0  # of the peer's channels
        self._open = [0, 0]  # channels, by parity
        self._late = 0  # what may still arrive for channels that are gone
        self._pings = 0
        self._echoes: deque[bytes] = deque()
        self._control: deque[bytes] = deque()
        self._credits: dict[int, Channel] = {}
        self._new: deque[int] = deque()  # channels that had nothing to send in the last round: first for one turn
        self._round: deque[int] = deque()
        self._after: list[Event] = []
        self._last = b""  # said before it rests
        self.resting = False  # it says no more
        self._rests = 0  # unanswered
        self._rested = False  # nor does the guest

    # ------------------------------------------------------------------ sending

    def synchronise(self, *, reopened: bool = False) -> None:
        """Begin a connection (host). *reopened*: the agent may be in the middle of an old frame."""
        if self._side is not Side.HOST or self._nonce is None:
            raise StateConflict("only a host with a nonce begins a connection")
        self._first.append((frames.PREAMBLE if reopened else b"") + frames.sync(self._nonce))

    def hello(self, body: dict[str, Any]) -> None:
        self._control.append(pack(frames.HELLO, 0, dump(body)))

    def ready(self, body: dict[str, Any]) -> None:
        self._control.append(pack(frames.READY, 0, dump(body)))

    def ping(self, token: bytes) -> None:
        """Have 8 bytes echoed, ahead of all data. Raises StateConflict with MAX_PINGS under way."""
        if len(token) != 8:
            raise ValueError("a token has 8 bytes")
        if self._pings >= MAX_PINGS:
            raise StateConflict(f"{self._pings} pings are unanswered")
        self._pings += 1
        self._echoes.append(pack(frames.PING, 0, token))

    def rest(self) -> None:
        """Say no more but REST, which the guest answers in kind (host): after ``Rested`` the stream may end.

        The conversation goes on where it stopped, over another one, by ``go_on``; the guest's when it hears that.
        """
        if self._side is not Side.HOST:
            raise StateConflict("only a host puts a connection to rest")
        self._rests += 1
        self._say_last()

    def go_on(self) -> None:
        """Speak again, and first of all let the guest hear it; nothing changes where it does (host)."""
        if self.resting:
            self._pings += 1
            self._echoes.append(pack(frames.PING, 0, bytes(8)))
        self.resting = self._rested = False

    def _say_last(self) -> None:
        self._last = b"".join((self._last, *self._first, *self._echoes, *self._control, pack(frames.REST)))
        for queue in (self._first, self._echoes, self._control):
            queue.clear()
        self.resting = True

    def open(self, kind: str, params: dict[str, Any]) -> int:
        """Ask for a channel and return its id; data may follow at once.

        Raises StateConflict when max_channels are open; InvalidSpec when *params* do not fit a frame.
        """
        parity = self._next & 1
        if self._open[parity] >= self._max_channels or len(self._control) >= 4 * self._max_channels:
            raise StateConflict(f"{self._open[parity]} channels are open", hint="close one first")
        if self._next > _LAST_ID:
            raise StateConflict("the connection has used up its channel ids", hint="reopen the stream")
        payload = dump({**params, "kind": kind})
        number = self._next
        self._next += 2
        self._add(number)
        self._control.append(pack(frames.OPEN, number, payload))
        return number

    def accept(self, number: int, body: dict[str, Any] | None = None) -> None:
        channel = self._unanswered(number)
        if channel is not None:
            self._control.append(pack(frames.ACCEPT, number, dump(body or {})))
            channel.accepted = True

    def deny(self, number: int, code: str, hint: str = "", **more: Any) -> None:
        """Refuse what the peer opened; *more* rides along in the body."""
        channel = self._unanswered(number)
        if channel is not None:
            self._control.append(pack(frames.DENY, number, dump({**more, "code": code, "hint": hint})))
            self._remove(number)
            self._expect_late(channel)

    def send_message(self, number: int, body: dict[str, Any]) -> None:
        """Queue one object behind what was sent before, with or without credit.

        Raises StateConflict when the peer has read nothing for so long that a window and a frame are
        waiting: who sends many asks ``writable`` first. InvalidSpec: the object is too big.
        """
        channel = self._sendable(number)
        if channel is None:
            return
        payload = dump(body)
        if channel.queued + cost(len(payload)) > self._window + MAX_PAYLOAD:
            raise StateConflict(f"channel {number}: the peer does not read", hint="wait for Writable")
        channel.put(frames.MESSAGE, memoryview(payload))
        self._list(number, channel)

    def send(self, number: int, sub: int, data: bytes | memoryview) -> int:
        """Queue what the credit allows of *data* and return how much that was; after less than all, a
        Writable follows. *sub*: 1 bytes, stdin and stdout, 2 stderr, 3 a cell's result.
        ``bytes`` are not copied.
        """
        channel = self._sendable(number)
        if channel is None:
            return len(data)
        taken = min(len(data), channel.writable())
        if taken < len(data):
            channel.starved = True
        if taken:
            view = memoryview(data)[:taken]
            channel.put(sub, view if isinstance(view.obj, bytes) else memoryview(bytes(view)))
            self._list(number, channel)
        return taken

    def writable(self, number: int) -> int:
        """How many bytes ``send`` would take now."""
        channel = self._channels.get(number)
        return channel.writable() if channel else 0

    def consumed(self, number: int, count: int) -> None:
        """The owner is done with *count* bytes of Data and Message (their ``size``): the peer may send more."""
        channel = self._channels.get(number)
        if channel is not None and channel.consumed(count):
            self._credits[number] = channel

    def finish(self, number: int) -> None:
        """Send no more, once what is queued has gone; the peer still may."""
        channel = self._sendable(number, finishing=True)
        if channel is not None:
            channel.finishing = True
            self._list(number, channel)

    def reset(self, number: int, code: str, hint: str = "") -> None:
        """Kill the channel both ways; what is queued or under way is dropped."""
        channel = self._channels.get(number)
        if channel is not None:
            self._control.append(pack(frames.RESET, number, dump({"code": code, "hint": hint})))
            self._remove(number)
            self._expect_late(channel)

    def outgoing(self, limit: int = BURST_BYTES) -> bytes:
        """The next bytes to send, b"" when there are none: at most *limit* and one frame.

        Pings and their echoes go first, then control, credit, and a turn for each channel: one that was
        silent before those that keep sending. At rest, once, all the control there was.
        """
        if not self._synced and self._side is Side.GUEST:
            return b""
        if self._last or self.resting:
            last, self._last = self._last, b""
            return last
        out: list[bytes | memoryview] = []
        size = 0
        for queue in (self._first, self._echoes, self._control):
            while queue and size < limit:
                out.append(queue.popleft())
                size += len(out[-1])
        while self._credits and size < limit:
            number, channel = self._credits.popitem()
            if owed := channel.give_back():
                out.append(pack(frames.CREDIT, number, owed.to_bytes(4, "big")))
                size += len(out[-1])
        while size < limit and (grown := self._turn(out)):
            size += grown
        return b"".join(out)

    def _turn(self, out: list[bytes | memoryview]) -> int:
        """Append one channel's next frame to *out* and return its length; 0 when none can send."""
        while self._new or self._round:
            number = (self._new or self._round).popleft()
            channel = self._channels.get(number)
            if channel is None:
                continue
            piece = channel.take(TURN_BYTES if self._new or self._round else MAX_PAYLOAD)
            if piece is not None:
                sub, payload = piece
                out += HEADER.pack(len(payload), number, frames.DATA, sub, 0), payload
                # Keeps a place even when it has no more: it is not new until a round went by without it.
                self._round.append(number)
                return HEADER.size + len(payload)
            channel.listed = False
            if channel.finishing and not channel.queue:
                channel.fin_out = True
                out.append(pack(frames.FIN, number))
                if channel.fin_in:
                    self._close(number, channel, self._after)
                return HEADER.size
        return 0

    def _list(self, number: int, channel: Channel) -> None:
        if not channel.listed:
            channel.listed = True
            self._new.append(number)

    def _unanswered(self, number: int) -> Channel | None:
        channel = self._channels.get(number)
        if channel is not None and (channel.accepted or number & 1 == self._next & 1):
            raise StateConflict(f"channel {number} is not waiting for an answer")
        return channel

    def _sendable(self, number: int, *, finishing: bool = False) -> Channel | None:
        channel = self._channels.get(number)
        if channel is None or (finishing and channel.finishing):
            return None
        if not channel.accepted and number & 1 != self._next & 1:
            raise StateConflict(f"channel {number} was not accepted yet")
        if channel.finishing:
            raise StateConflict(f"channel {number} was finished")
        return channel

    def _add(self, number: int) -> Channel:
        channel = self._channels[number] = Channel(self._window)
        self._open[number & 1] += 1
        return channel

    def _remove(self, number: int) -> None:
        del self._channels[number]
        self._credits.pop(number, None)
        self._open[number & 1] -= 1

    def _expect_late(self, channel: Channel) -> None:
        """The peer does not know yet that *channel* is gone: what it had leave to send may come."""
        allowance = _LATE_FRAMES * MIN_COST + (0 if channel.fin_in else channel.room)
        self._late = min(self._late + allowance, self._max_channels * self._window)

    def _close(self, number: int, channel: Channel, events: list[Event]) -> None:
        self._remove(number)
        self._expect_late(channel)
        events.append(Closed(number))

    # ---------------------------------------------------------------- receiving

    def receive(self, data: bytes) -> list[Event]:
        """What *data* says. Raises ProtocolViolation for what no honest peer sends, and from then on always."""
        if self._violation is not None:
            raise ProtocolViolation(self._violation)
        events, self._after = self._after, []
        try:
            for kind, number, sub, payload, text in self._decoder.feed(data):
                if self.resting:
                    self._on_heard()
                if number == 0:
                    self._on_connection(kind, payload, text, events)
                elif kind == frames.OPEN:
                    self._on_open(number, text, events)
                elif (channel := self._channels.get(number)) is None:
                    self._on_late(kind, number, len(payload) or len(text))
                elif kind == frames.DATA:
                    self._on_data(number, channel, sub, payload, text, events)
                else:
                    self._on_channel(kind, number, channel, payload, text, events)
        except ProtocolViolation as violation:
            self._violation = violation.message
            raise
        return events

    def _on_heard(self) -> None:
        if self._side is Side.GUEST:
            self.resting = False
        elif self._rested:
            raise ProtocolViolation("it spoke when it had said that it rests")

    def _on_rest(self, events: list[Event]) -> None:
        if self._side is Side.GUEST:
            self._say_last()
            return
        if not self._rests:
            raise ProtocolViolation("a REST nobody asked for")
        self._rests -= 1
        if not self._rests and self.resting:  # else it is the answer to one that was given up
            self._rested = True
            events.append(Rested())

    def _on_connection(self, kind: int, payload: bytes, text: str, events: list[Event]) -> None:
        host = self._side is Side.HOST
        if kind == frames.SYNC:
            self._on_sync(payload, events)
        elif kind == frames.PING:
            if len(self._echoes) >= 2 * MAX_PINGS:
                raise ProtocolViolation("a flood of pings")
            self._echoes.append(pack(frames.PONG, 0, payload))
        elif kind == frames.PONG and self._pings:
            self._pings -= 1
            events.append(Pong(payload))
        elif kind == frames.REST:
            self._on_rest(events)
        elif kind == frames.HELLO and not host:
            events.append(Hello(load(text)))
        elif kind == frames.READY and host:
            events.append(Ready(load(text)))
        else:
            raise ProtocolViolation(f"a {frames.KINDS[kind]} out of place")

    def _on_sync(self, nonce: bytes, events: list[Event]) -> None:
        if self._side is Side.GUEST:
            self._forget()
            events.clear()  # of the old connection; its channel ids now mean others
            self._first.clear()
            self._first.append(frames.sync(nonce))
        self._synced = True
        events.append(Synced(nonce))

    def _on_open(self, number: int, text: str, events: list[Event]) -> None:
        if number & 1 == self._next & 1 or number <= self._highest or number > _LAST_ID:
            raise ProtocolViolation(f"channel {number} is not the peer's to open")
        if self._open[number & 1] >= self._max_channels or len(self._control) >= 8 * self._max_channels:
            raise ProtocolViolation("too many channels")
        params = load(text)
        kind = params.pop("kind", None)
        if not isinstance(kind, str):
            raise ProtocolViolation("a channel without a kind")
        self._highest = number
        self._add(number)
        events.append(Opened(number, kind, params))

    def _on_data(self, number: int, channel: Channel, sub: int, payload: bytes, text: str, events: list[Event]) -> None:
        self._check_accepted(number, channel)
        if sub == frames.MESSAGE:
            channel.arrived(len(text))
            events.append(Message(number, load(text), len(text)))
        else:
            channel.arrived(len(payload))
            events.append(Data(number, sub, payload))

    def _on_channel(
        self, kind: int, number: int, channel: Channel, payload: bytes, text: str, events: list[Event]
    ) -> None:
        if kind == frames.CREDIT:
            if channel.credited(int.from_bytes(payload, "big")):
                events.append(Writable(number))
            if channel.has_work():
                self._list(number, channel)
        elif kind == frames.FIN and not channel.fin_in:
            self._check_accepted(number, channel)
            channel.fin_in = True
            events.append(Finished(number))
            if channel.fin_out:
                self._close(number, channel, events)
        elif kind == frames.RESET:
            body = load(text)
            self._remove(number)
            events.append(Reset(number, *_reason(body)))
        elif kind in (frames.ACCEPT, frames.DENY) and number & 1 == self._next & 1 and not channel.accepted:
            body = load(text)
            if kind == frames.ACCEPT:
                channel.accepted = True
                events.append(Accepted(number, body))
            else:
                self._remove(number)
                events.append(Denied(number, *_reason(body), body))
        else:
            raise ProtocolViolation(f"a {frames.KINDS[kind]} out of place on channel {number}")

    def _on_late(self, kind: int, number: int, length: int) -> None:
        """A frame for a channel that is gone: under way when it died, if it ever lived."""
        ours = number & 1 == self._next & 1
        if number >= self._next if ours else number > self._highest:
            raise ProtocolViolation(f"channel {number} was never opened")
        self._late -= cost(length) if kind == frames.DATA else MIN_COST
        if self._late < 0:
            raise ProtocolViolation(f"channel {number} is gone, and more than a window came for it")

    def _check_accepted(self, number: int, channel: Channel) -> None:
        if not channel.accepted and number & 1 == self._next & 1:
            raise ProtocolViolation(f"channel {number} speaks before it was accepted")


def _reason(body: dict[str, Any]) -> tuple[str, str]:
    return str(body.get("code", "unknown")), str(body.get("hint", ""))
