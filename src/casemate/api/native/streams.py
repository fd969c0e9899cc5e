"""Responses that are written as things happen, and end when their client goes away.

    produce(out) ── out.put(piece) ──> uvicorn ──> client
          │              waits while the client does not read
          └ is cancelled when the client goes away

The status is sent with the first piece: what fails before it is an ordinary JSON error.
"""

from __future__ import annotations

import binascii
import json
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar

import anyio
from starlette.requests import Request
from starlette.types import Message, Receive, Scope, Send

from casemate import errors
from casemate.api.errors import the_error
from casemate.sandbox.execs import Output

KEEP_ALIVE_S = 4.0  # promised: a line at least every 5 s
KEEP_ALIVE = b'{"event":"keepalive"}\n'
T = TypeVar("T")
_encode = json.JSONEncoder(separators=(",", ":"), default=str).encode


class Out:
    """The body of a response under way."""

    def __init__(self, send: Send, status: int, headers: Mapping[str, str]) -> None:
        self.started = self.ended = False
        self._send = send
        self._start: Message = {
            "type": "http.response.start",
            "status": status,
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        }
        self._turn = anyio.Lock(fast_acquire=True)
        self._sent_at = time.monotonic()

    def will_have(self, size_bytes: int) -> None:
        """Promise the length of the body; before the first piece."""
        self._start["headers"].append((b"content-length", b"%d" % size_bytes))

    async def put(self, piece: bytes, *, last: bool = False) -> None:
        """Send *piece*; waits while the client has not read what went before."""
        async with self._turn:
            if not self.started:
                self.started = True
                await self._send(self._start)
            self.ended = last
            await self._send({"type": "http.response.body", "body": piece, "more_body": not last})
            self._sent_at = time.monotonic()

    async def keep_alive(self) -> None:
        """Put a line whenever nothing else was for a while, once the response has begun."""
        while True:
            quiet_s = time.monotonic() - self._sent_at
            if self.started and not self.ended and quiet_s >= KEEP_ALIVE_S:
                await self.put(KEEP_ALIVE)
            await anyio.sleep(max(KEEP_ALIVE_S - quiet_s, 0.1) if self.started else 0.5)


class Lines(Out):
    """NDJSON: one JSON object a line."""

    async def say(self, body: Mapping[str, Any]) -> None:
        await self.put(to_line(body) + b"\n")

    async def put_lines(self, said: Sequence[bytes], last: bool) -> None:
        """Several at once."""
        await self.put(b"\n".join([*said, b""]), last=last)

    async def say_output(self, output: Output) -> None:
        text = binascii.b2a_base64(output.data, newline=False)
        await self.put(b'{"event":"%b","offset":%d,"data":"%b"}\n' % (output.stream.encode(), output.offset, text))


def to_line(body: Mapping[str, Any]) -> bytes:
    """An object as one line, without its end."""
    return _encode(body).encode()


OutT = TypeVar("OutT", bound=Out)


class Streamed(Generic[OutT]):
    """An ASGI response: runs *produce* with its Out until it is done or the client is gone."""

    def __init__(
        self,
        kind: type[OutT],
        produce: Callable[[OutT], Awaitable[None]],
        *,
        status: int = 200,
        media_type: str,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self._kind = kind
        self._produce = produce
        self._status = status
        self._headers = {"content-type": media_type, **(headers or {})}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        out = self._kind(send, self._status, self._headers)
        failure: errors.CasemateError | None = None
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(cancel_when_gone, receive, tasks.cancel_scope)
            if isinstance(out, Lines):
                tasks.start_soon(out.keep_alive)
            try:
                await self._produce(out)
                if not out.ended:
                    await out.put(b"", last=True)
            except (errors.CasemateError, BaseExceptionGroup) as raised:
                failure = the_error(raised)
                if failure is None:
                    raise
            tasks.cancel_scope.cancel()
        if failure is None:
            return
        if not out.started or not isinstance(out, Lines):
            raise failure  # a JSON error with its own status; bytes under way are torn, which the client sees
        await out.say({"event": "error", "error": failure.to_json()})
        await out.put(b"", last=True)


def lines(produce: Callable[[Lines], Awaitable[None]], *, status: int = 200) -> Streamed[Lines]:
    return Streamed(Lines, produce, status=status, media_type="application/x-ndjson")


def octets(
    produce: Callable[[Out], Awaitable[None]],
    *,
    status: int = 200,
    media_type: str = "application/octet-stream",
    headers: Mapping[str, str] | None = None,
) -> Streamed[Out]:
    return Streamed(Out, produce, status=status, media_type=media_type, headers=headers)


async def cancel_when_gone(receive: Receive, scope: anyio.CancelScope) -> None:
    """For after the request's body was read: the next thing to receive is that the client left."""
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


async def while_wanted(request: Request, act: Callable[[], Awaitable[T]]) -> T | None:
    """The result of *act*, which is cancelled when the client goes away (then None)."""
    result: T | None = None
    failure: errors.CasemateError | None = None
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(cancel_when_gone, request.receive, tasks.cancel_scope)
        try:
            result = await act()
        except errors.CasemateError as error:
            failure = error
        tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure
    return result
