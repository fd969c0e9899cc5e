"""Pure parts of reading a stream: lines out of pieces, and output kept within a bound."""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Iterator
from typing import Any

from casemate.errors import CasemateError

MAX_LINE_BYTES = 33 * 2**20  # an output line carries at most 64 KiB, a result's 32 MiB
MAX_OUTPUT_BYTES = 2 * 2**20
_OUTPUT = re.compile(rb'\{"event":"(stdout|stderr)","offset":(\d{1,19}),"data":"')


class LineSplitter:
    """NDJSON in pieces of any size; holds no more than one unfinished line."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._held = 0

    def feed(self, piece: bytes) -> Iterator[dict[str, Any]]:
        """The objects that *piece* completes, keep-alives left out."""
        start = 0
        while (end := piece.find(b"\n", start)) >= 0:
            line = piece[start:end]
            if self._parts:
                self._parts.append(line)
                line = b"".join(self._parts)
                self._parts.clear()
                self._held = 0
            start = end + 1
            if line and (body := _parsed(line)).get("event") != "keepalive":
                yield body
        if start < len(piece):
            self._parts.append(piece[start:] if start else piece)
            self._held += len(piece) - start
            if self._held > MAX_LINE_BYTES:
                raise CasemateError(
                    "the daemon sent a line that is too long", hint="is CASEMATE_URL a Casemate daemon?"
                )

    @property
    def torn(self) -> bool:
        """Whether the stream stopped in the middle of a line."""
        return bool(self._parts)


def _parsed(line: bytes) -> dict[str, Any]:
    """The object on one line. Output, nearly all there is, is taken apart without a look at every character."""
    if (output := _OUTPUT.match(line)) and line.endswith(b'"}'):
        return {
            "event": output[1].decode(),
            "offset": int(output[2]),
            "data": memoryview(line)[output.end() : -2],
        }
    body = json.loads(line)
    if not isinstance(body, dict):
        raise ValueError(f"{line[:80]!r} is not an object")
    return body


class Kept:
    """The first and the last half of at most *limit* bytes; counts what falls out between them."""

    def __init__(self, limit: int = MAX_OUTPUT_BYTES) -> None:
        self.dropped_bytes = 0
        self._head: list[bytes] = []
        self._room = limit - limit // 2
        self._tail: deque[bytes] = deque()
        self._tail_bytes = 0
        self._tail_limit = limit // 2

    def add(self, data: bytes) -> None:
        if self._room:
            first, data = data[: self._room], data[self._room :]
            self._head.append(first)
            self._room -= len(first)
        if data:
            self._tail.append(data)
            self._tail_bytes += len(data)
            self._trim()

    def _trim(self) -> None:
        excess = self._tail_bytes - self._tail_limit
        while excess > 0:
            oldest = self._tail.popleft()
            if len(oldest) > excess:
                self._tail.appendleft(oldest[excess:])
            gone = min(len(oldest), excess)
            self.dropped_bytes += gone
            self._tail_bytes -= gone
            excess -= gone

    def value(self) -> bytes:
        return b"".join((*self._head, *self._tail))
