"""Firecracker's API over a socket that is connected: HTTP/1.1, one request at a time, each with a deadline.

A VMM whose guest has taken it over answers what it likes: its bytes are bounded, and none is believed to be HTTP or
JSON before it has been parsed as such.

    request ──> … answer: 2xx ──> what it says, decoded
                          else ──> VmmRefused, with its fault_message
                no answer in time ──> VmmRefused; the answer is owed, and the next call drops it when it comes
                no HTTP, no JSON, too long ──> VmmRefused, now and to every later call: trust is lost
                end of the stream ──> VmmExited, now and to every later call

A call that was cancelled may have taken effect, like one whose time was up; it leaves the connection as usable as
that one does.
"""

from __future__ import annotations

import json
import socket
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httptools

from casemate.errors import Retry, StateConflict, VmmExited, VmmRefused
from casemate.vmm.firecracker.calls import Call

ANSWER_S = 20.0
HEAD_BYTES = 16 << 10
BODY_BYTES = 1 << 20
FAULT_CHARACTERS = 1000
_PIECE_BYTES = HEAD_BYTES


class Api:
    """Made by ``open_api``."""

    def __init__(self, raw: socket.socket, guest_id: str) -> None:
        self._raw = raw
        self._guest_id = guest_id
        self._unsent = bytearray()
        self._answers = _Answers()
        self._owed = 0  # requests whose answers have not come yet
        self._lost: Exception | None = None
        self.idle = anyio.Lock(fast_acquire=True)  # whoever holds it knows that no call is under way
        self.frozen = False  # its VMM answers nothing

    async def do(self, call: Call, timeout_s: float = ANSWER_S) -> Any:
        """What it answers: decoded JSON, None where there is nothing to say.

        Raises VmmRefused (evidence: call, status, fault), VmmExited when the connection is lost; StateConflict when
        it is frozen.
        """
        try:
            with anyio.fail_after(timeout_s):
                async with self.idle:
                    if self.frozen:
                        raise StateConflict(f"guest {self._guest_id} is frozen: {call} needs it thawed")
                    status, body = await self._exchange(call)
            return self._decoded(call, status, body)
        except TimeoutError as error:
            raise VmmRefused(
                f"guest {self._guest_id}: {call} was not answered in {timeout_s:g} s",
                retry=Retry.UNKNOWN,
                evidence={"call": str(call)},
            ) from error
        except _Nonsense as error:
            raise VmmRefused(
                f"guest {self._guest_id}: {call} was answered by {error}", evidence={"call": str(call)}
            ) from error
        except (OSError, EOFError, anyio.ClosedResourceError) as error:
            raise VmmExited(
                f"guest {self._guest_id}: its VMM ended during {call}", evidence={"call": str(call)}
            ) from error

    async def _exchange(self, call: Call) -> tuple[int, bytes]:
        if self._lost is not None:
            raise self._lost.with_traceback(None)
        self._unsent += _request(call)
        self._owed += 1
        try:
            while self._unsent:
                await self._send()
            while True:
                while self._answers.whole:
                    self._owed -= 1
                    answer = self._answers.whole.popleft()
                    if not self._owed:
                        return answer
                await self._receive()
        except (OSError, EOFError, _Nonsense) as error:
            self._lost = error
            raise

    async def _send(self) -> None:
        try:
            sent = self._raw.send(self._unsent)
        except BlockingIOError:
            await anyio.wait_writable(self._raw)
        else:
            del self._unsent[:sent]

    async def _receive(self) -> None:
        try:
            data = self._raw.recv(_PIECE_BYTES)
        except BlockingIOError:
            await anyio.wait_readable(self._raw)
            return
        if not data:
            raise EOFError
        self._answers.feed(data)
        if len(self._answers.whole) > self._owed:
            raise _Nonsense("more than was asked for")

    def _decoded(self, call: Call, status: int, body: bytes) -> Any:
        try:
            found = json.loads(body) if body.strip() else None
        except (ValueError, RecursionError) as error:
            if 200 <= status < 300:
                self._lost = _Nonsense("what is no JSON")
                raise self._lost from error
            found = None
        if 200 <= status < 300:
            return found
        said = found.get("fault_message") if isinstance(found, dict) else None
        fault = _shown(said if isinstance(said, str) else body.decode("utf-8", "replace")) or "no reason given"
        raise VmmRefused(
            f"guest {self._guest_id}: {call}: {fault}",
            evidence={"call": str(call), "status": status, "fault": fault},
        )


@asynccontextmanager
async def open_api(ours: socket.socket, guest_id: str) -> AsyncIterator[Api]:
    """The API at the other end of *ours*, which is connected, does not block, and is used up."""
    try:
        yield Api(ours, guest_id)
    finally:
        anyio.notify_closing(ours)
        ours.close()


class _Nonsense(Exception):
    """What no honest Firecracker sends."""


class _Answers:
    """Bytes go in, whole answers come out, of a bounded length."""

    def __init__(self) -> None:
        self.whole: deque[tuple[int, bytes]] = deque()
        self._parser: Any = httptools.HttpResponseParser(self)
        self._body = bytearray()
        self._size = 0  # of this answer so far, framing and all
        self._in_head = True
        self._too_long = False

    def feed(self, data: bytes) -> None:
        """Raises _Nonsense."""
        self._size += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            raise _Nonsense(f"what is no HTTP ({error})"[:100]) from error
        if self._too_long or self._size > HEAD_BYTES + (0 if self._in_head else BODY_BYTES):
            raise _Nonsense("more than an answer may have")

    # httptools calls these; none may raise

    def on_message_begin(self) -> None:
        self._in_head, self._body = True, bytearray()

    def on_headers_complete(self) -> None:
        self._in_head = False

    def on_body(self, piece: bytes) -> None:
        self._too_long |= len(self._body) + len(piece) > BODY_BYTES
        self._body += b"" if self._too_long else piece

    def on_message_complete(self) -> None:
        self.whole.append((self._parser.get_status_code(), bytes(self._body)))
        self._size, self._in_head, self._body = 0, True, bytearray()


def _request(call: Call) -> bytes:
    body = b"" if call.body is None else json.dumps(call.body).encode()
    lines = [f"{call.method} {call.path} HTTP/1.1", "Host: localhost", "Accept: application/json"]
    if call.body is not None:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode() + body


def _shown(text: str) -> str:
    """On one line, printable, not too long: the VMM chose it."""
    words = "".join(sign if sign.isprintable() else " " for sign in text[: 4 * FAULT_CHARACTERS]).split()
    return " ".join(words)[:FAULT_CHARACTERS]
