"""The frame and its bounded decoder.

    0        4        8    9    10       12
    +--------+--------+----+----+--------+---------···
    | length | channel|kind|sub |  zero  | payload
    +--------+--------+----+----+--------+---------···
      u32 BE   u32 BE   u8   u8   u16 BE   length bytes, at most 65,536

A stream begins with a SYNC frame (payload: magic, nonce), and so does every new connection on it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from io import BytesIO

from casemate.errors import ProtocolViolation
from casemate.wire.bodies import MAX_JSON

GENERATION = 1
HEADER = struct.Struct(">IIBBH")
HEADER_BYTES = HEADER.size
MAX_PAYLOAD = 65_536
MAGIC = b"\xcaCASEMATE-SYNC-1"
NONCE_BYTES = 16
MAX_SKIPPED = 1 << 20
PREAMBLE_BYTES = MAX_PAYLOAD + HEADER_BYTES
PREAMBLE = bytes(PREAMBLE_BYTES)  # fills up any frame an agent may be in the middle of, and a NOP

NOP, SYNC, OPEN, ACCEPT, DENY, DATA, CREDIT, FIN, RESET, PING, PONG, HELLO, READY, REST = range(14)
KINDS = ("NOP", "SYNC", "OPEN", "ACCEPT", "DENY", "DATA", "CREDIT", "FIN", "RESET", "PING", "PONG", "HELLO",
         "READY", "REST")  # fmt: skip
MESSAGE, BYTES, STDERR, RESULT = range(4)  # the subs of DATA

_SYNC_PAYLOAD = len(MAGIC) + NONCE_BYTES
_SYNC_START = HEADER.pack(_SYNC_PAYLOAD, 0, SYNC, 0, 0) + MAGIC
_SYNC_ZEROS = len(_SYNC_START) - len(_SYNC_START.lstrip(b"\0"))
SYNC_BYTES = len(_SYNC_START) + NONCE_BYTES

_CHANNELLESS = frozenset((SYNC, PING, PONG, HELLO, READY, REST))
_JSON = frozenset((OPEN, ACCEPT, DENY, RESET, HELLO, READY))  # and DATA with sub 0
_LEAST = tuple({SYNC: _SYNC_PAYLOAD, DATA: 1, CREDIT: 4, PING: 8, PONG: 8}.get(k, 2 * (k in _JSON)) for k in range(14))
_MOST = tuple({DATA: MAX_PAYLOAD}.get(k, MAX_JSON if k in _JSON else _LEAST[k]) for k in range(14))

Frame = tuple[int, int, int, bytes, str]  # kind, channel, sub, and the payload: bytes, or text when it is JSON


def pack(kind: int, channel: int = 0, payload: bytes = b"", sub: int = 0) -> bytes:
    return HEADER.pack(len(payload), channel, kind, sub, 0) + payload


def sync(nonce: bytes) -> bytes:
    return _SYNC_START + nonce


class Decoder:
    """Bytes in, frames out; holds at most one incomplete frame. Starts in HUNT.

    HUNT of a host (has a *nonce*): skips at most 1 MiB that an old connection left, up to the SYNC with its nonce.
    HUNT of an agent (no nonce): skips zero bytes, then demands a SYNC.
    An agent falls back into HUNT on an all-zero header, and on a frame that the zeros of a reopened stream
    filled up: the kind says NOP, or the magic or the JSON ends in a zero byte. Such a frame is dropped.
    """

    def __init__(self, nonce: bytes | None = None) -> None:
        self._nonce = nonce
        self._hunting = True
        self._skipped = 0
        self._zeros = 0
        self._head = b""  # an incomplete header; while hunting, what may become a SYNC
        self._header = (0, 0, 0, 0, 0)
        self._body: BytesIO | None = None  # what has come of the payload when it did not come whole

    def feed(self, chunk: bytes) -> Iterator[Frame]:
        """The frames that end in *chunk*; exhaust it before the next call. Raises ProtocolViolation."""
        at, end, view = 0, len(chunk), memoryview(chunk)
        while at < end:
            if self._hunting:
                at, nonce = self._hunt_own(chunk) if self._nonce is not None else self._hunt_any(chunk, at)
                if nonce:
                    yield SYNC, 0, 0, nonce, ""
                continue
            if self._body is not None:
                at += self._body.write(view[at : at + self._header[0] - self._body.tell()])
                frame = self._whole()
            else:
                if self._head or end - at < HEADER_BYTES:
                    missing = HEADER_BYTES - len(self._head)
                    self._head += chunk[at : at + missing]
                    at = min(at + missing, end)
                    if len(self._head) < HEADER_BYTES:
                        return
                    header, self._head = HEADER.unpack(self._head), b""
                else:
                    header = HEADER.unpack_from(chunk, at)
                    at += HEADER_BYTES
                if not self._admit(*header):
                    continue
                length = header[0]
                if end - at < length:
                    self._header, self._body = header, BytesIO()
                    self._body.write(view[at:])
                    return
                frame = self._frame(header, view[at : at + length])
                at += length
            if frame is not None:
                yield frame

    def _admit(self, length: int, channel: int, kind: int, sub: int, zero: int) -> bool:
        """Whether a payload follows; everything a header can get wrong is found here, before any allocation."""
        if kind == NOP and not sub and not zero and self._nonce is None:
            self._hunting = True
            self._zeros = 4  # those after the channel
            return False
        if not NOP < kind <= REST or zero or not _LEAST[kind] <= length <= _MOST[kind]:
            raise ProtocolViolation(f"a frame of kind {kind} with {length} bytes")
        if sub > (RESULT if kind == DATA else 0) or (channel == 0) != (kind in _CHANNELLESS):
            raise ProtocolViolation(f"a frame of kind {KINDS[kind]} with sub {sub} on channel {channel}")
        return True

    def _whole(self) -> Frame | None:
        """The frame that came in pieces, once it is complete."""
        assert self._body is not None
        if self._body.tell() < self._header[0]:
            return None
        body, self._body = self._body, None
        return self._frame(self._header, body.getvalue())  # hands its buffer over; nothing is copied

    def _frame(self, header: tuple[int, ...], payload: bytes | memoryview) -> Frame | None:
        """None when the frame was torn, see above."""
        _, channel, kind, sub, _ = header
        if kind in _JSON or (kind == DATA and sub == MESSAGE):
            if payload[-1] == 0 and self._nonce is None:
                self._hunting, self._zeros = True, 1
                return None
            try:
                return kind, channel, sub, b"", str(payload, "ascii")
            except UnicodeDecodeError:
                raise ProtocolViolation(f"a {KINDS[kind]} that is not ASCII") from None
        payload = bytes(payload)
        if kind != SYNC:
            return kind, channel, sub, payload, ""
        if self._nonce is not None:
            raise ProtocolViolation("a second SYNC")
        if not payload.startswith(MAGIC):
            if payload[-1] != 0:
                raise ProtocolViolation("a SYNC without its magic")
            self._hunting, self._zeros = True, 1
            return None
        return kind, 0, 0, payload[len(MAGIC) :], ""

    def _hunt_any(self, chunk: bytes, at: int) -> tuple[int, bytes]:
        """How far *chunk* is used up, and the nonce of the SYNC that ended the hunt, or nothing."""
        head = self._head
        if not head:
            piece = chunk[at : at + MAX_PAYLOAD]
            rest = piece.lstrip(b"\0")
            self._zeros += len(piece) - len(rest)
            at += len(piece) - len(rest)
            if not rest:
                return at, b""
            head = bytes(min(self._zeros, _SYNC_ZEROS))  # the SYNC's own
        taken = chunk[at : at + SYNC_BYTES - len(head)]
        head += taken
        if not _SYNC_START.startswith(head[: len(_SYNC_START)]):
            raise ProtocolViolation("bytes before the SYNC")
        self._head = head
        if len(head) == SYNC_BYTES:
            self._hunting, self._zeros, self._head = False, 0, b""
            return at + len(taken), head[len(_SYNC_START) :]
        return at + len(taken), b""

    def _hunt_own(self, chunk: bytes) -> tuple[int, bytes]:
        assert self._nonce is not None
        data = self._head + chunk
        found = data.find(sync(self._nonce))
        keep = 0 if found >= 0 else min(len(data), SYNC_BYTES - 1)
        self._skipped += found if found >= 0 else len(data) - keep
        if self._skipped > MAX_SKIPPED:
            raise ProtocolViolation(f"no SYNC within {MAX_SKIPPED} bytes")
        if found < 0:
            self._head = data[len(data) - keep :]
            return len(chunk), b""
        at = found + SYNC_BYTES - len(self._head)
        self._hunting, self._head = False, b""
        return at, self._nonce
