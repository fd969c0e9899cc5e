"""The frame and its bounded decoder.

0        4        8    9    10       12
+--------+--------+----+----+--------+---------···
| length | channel|kind|sub |  zero  | payload
+--------+--------+----+----+--------+---------···
  u32 BE   u32 BE   u8   u8   u16 BE   length bytes, at most 65,536
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from casemate.errors import ProtocolViolation

HEADER = struct.Struct(">IIBBH")
HEADER_BYTES = HEADER.size
MAX_PAYLOAD = 65_536
MAGIC = b"\xcaCASEMATE-SYNC-1"
NONCE_BYTES = 16
SYNC_BYTES = HEADER_BYTES + len(MAGIC) + NONCE_BYTES
MAX_SKIPPED = 1 << 20
NOP, SYNC, OPEN, ACCEPT, DENY, DATA, CREDIT, FIN, RESET, PING, PONG, HELLO, READY = range(13)
_NO_HEADER = bytes(HEADER_BYTES)
_SYNC_HEADER = HEADER.pack(len(MAGIC) + NONCE_BYTES, 0, SYNC, 0, 0)

Frame = tuple[int, int, int, bytes]  # kind, channel, sub, payload


def pack(kind: int, channel: int = 0, payload: bytes = b"", sub: int = 0) -> bytes:
    return HEADER.pack(len(payload), channel, kind, sub, 0) + payload


def sync(nonce: bytes) -> bytes:
    return _SYNC_HEADER + MAGIC + nonce


class Decoder:
    """Bytes in, frames out. Starts hunting for a SYNC.

    A host hunts for its own *nonce* behind anything an old stream left; an agent (no nonce) skips zeros only.
    Holds at most one incomplete frame beyond what it was just fed.
    """

    def __init__(self, nonce: bytes | None = None) -> None:
        self._nonce = nonce
        self._rest = b""
        self._hunting = True
        self._skipped = 0

    def feed(self, data: bytes) -> Iterator[Frame]:
        """The whole frames in what has come so far; a SYNC is one of them. Raises ProtocolViolation."""
        data = self._rest + data if self._rest else data
        self._rest = b""
        at = 0
        while True:
            if self._hunting:
                at = self._hunt(data, at)
                if at < 0:
                    return
                yield SYNC, 0, 0, data[at - NONCE_BYTES : at]
                continue
            if len(data) - at < HEADER_BYTES:
                break
            length, channel, kind, sub, zero = HEADER.unpack_from(data, at)
            if length > MAX_PAYLOAD or kind > READY or zero:
                raise ProtocolViolation(f"a frame of kind {kind} with {length} bytes")
            if kind == NOP:
                if length or channel or sub:
                    raise ProtocolViolation("a NOP that is not empty")
                self._hunting = True
                self._skipped = 0
                continue
            end = at + HEADER_BYTES + length
            if len(data) < end:
                break
            payload = data[at + HEADER_BYTES : end]
            at = end
            if kind == SYNC:
                if length != len(MAGIC) + NONCE_BYTES or payload[: len(MAGIC)] != MAGIC:
                    raise ProtocolViolation("a SYNC without its magic")
                payload = payload[len(MAGIC) :]
            yield kind, channel, sub, payload
        self._rest = data[at:]

    def _hunt(self, data: bytes, at: int) -> int:
        """The index behind the SYNC, or -1 when more is needed."""
        if self._nonce is None:
            start = at
            while start < len(data) and data[start] == 0:
                start += 1
            # three zeros of the SYNC header's length belong to it
            start = max(at, start - 3)
            wanted = _SYNC_HEADER + MAGIC
            have = data[start : start + SYNC_BYTES]
            if not have.strip(b"\0"):
                self._rest = data[max(at, len(data) - 3) :]
                return -1
            if not wanted.startswith(have[: len(wanted)]):
                raise ProtocolViolation("bytes before the first SYNC")
            if len(have) < SYNC_BYTES:
                self._rest = data[start:]
                return -1
            self._hunting = False
            return start + SYNC_BYTES
        wanted = sync(self._nonce)
        start = data.find(wanted, at)
        if start >= 0:
            self._hunting = False
            return start + SYNC_BYTES
        keep = min(len(data) - at, SYNC_BYTES - 1)
        self._skipped += len(data) - at - keep
        if self._skipped > MAX_SKIPPED:
            raise ProtocolViolation("no SYNC within 1 MiB")
        self._rest = data[len(data) - keep :]
        return -1
