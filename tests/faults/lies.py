"""What no honest agent says, as bytes on the wire: for the link by itself and for an agent in a real guest.

Each lie is told after one exec was accepted; CHANNEL stands where that channel's number belongs.
"""

from __future__ import annotations

import json

from casemate.wire.bodies import MAX_JSON
from casemate.wire.frames import (
    ACCEPT,
    BYTES,
    CREDIT,
    DATA,
    DENY,
    FIN,
    HEADER,
    HELLO,
    MESSAGE,
    NOP,
    OPEN,
    PING,
    PONG,
    READY,
    RESET,
    pack,
    sync,
)

CHANNEL = 0x7E57C0DE
_MARK = CHANNEL.to_bytes(4, "big")
_FULL = pack(DATA, CHANNEL, b"x" * 40_000, BYTES)


def told(lie: bytes, channel: int) -> bytes:
    return lie.replace(_MARK, channel.to_bytes(4, "big"))


def _end(**end: object) -> bytes:
    body = {"event": "end", "end": end, "duration_ms": 1, "cpu_ms": 1, "peak_memory_mib": 1}
    return pack(DATA, CHANNEL, json.dumps(body).encode(), MESSAGE)


# name → what is said, and how many times
LIES: dict[str, tuple[bytes, int]] = {
    "an id nobody opened": (pack(DATA, 9999, b"x", BYTES), 1),
    "an id of its own that it never opened": (pack(DATA, 2, b"x", BYTES), 1),
    "a frame of 4 GiB": (HEADER.pack(0xFFFFFFFF, CHANNEL, DATA, 1, 0) + bytes(100), 1),
    "a kind there is not": (HEADER.pack(4, CHANNEL, 99, 0, 0) + bytes(4), 1),
    "a stream there is not": (pack(DATA, CHANNEL, b"x", 7), 1),
    "reserved bits": (HEADER.pack(1, CHANNEL, DATA, 1, 1) + b"x", 1),
    "a NOP": (pack(NOP), 1),
    "data beyond the window": (_FULL, 1000),
    "single bytes beyond the window": (pack(DATA, CHANNEL, b"x", BYTES), 100_000),
    "data after the end": (pack(FIN, CHANNEL) + pack(DATA, CHANNEL, b"x", BYTES), 1),
    "two ends": (pack(FIN, CHANNEL), 2),
    "credit beyond the window": (pack(CREDIT, CHANNEL, (2**31).to_bytes(4, "big")), 1),
    "credit in crumbs": (pack(CREDIT, CHANNEL, bytes(4)), 100_000),
    "a second accept": (pack(ACCEPT, CHANNEL, b"{}"), 1),
    "a denial after the accept": (pack(DENY, CHANNEL, b'{"code":"x"}'), 1),
    "an answer that is no object": (pack(READY, 0, b"[1]"), 1),
    "a flood of channels": (b"".join(pack(OPEN, n, b'{"kind":"x"}') for n in range(2, 2000, 2)), 1),
    "a channel with the host's id": (pack(OPEN, 2**20 + 1, b'{"kind":"x"}'), 1),
    "a flood of pings": (pack(PING, 0, bytes(8)), 100_000),
    "a pong nobody asked for": (pack(PONG, 0, bytes(8)), 200),
    "a flood of resets": (pack(RESET, 9999, b'{"code":"x"}'), 100_000),
    "JSON without an end": (HEADER.pack(MAX_JSON, 0, READY, 0, 0) + b'{"a":"' + b"x" * 40_000, 1000),
    "JSON as deep as it goes": (pack(READY, 0, b'{"a":' * 2000 + b"1" + b"}" * 2000), 1),
    "JSON in more pieces than a body has": (pack(READY, 0, b'{"a":[' + b"[]," * 13_000 + b"[]]}"), 1),
    "JSON that is no ASCII": (pack(READY, 0, '{"a":"ü"}'.encode()), 1),
    "a hello": (pack(HELLO, 0, b"{}"), 1),
    "a second READY": (pack(READY, 0, b"{}"), 2),
    "a second SYNC": (sync(bytes(16)), 1),
    "an exit status there is not": (_end(kind="exited", code=70_000), 1),
    "an end there is not": (_end(kind="ascended"), 1),
    "a signal there is not": (_end(kind="signaled", signal=1000), 1),
    "a message nobody sends": (pack(DATA, CHANNEL, b'{"event":"gossip"}', MESSAGE), 1),
}
