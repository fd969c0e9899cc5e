"""Responses that are written as things happen, and end when their client goes away.

    produce(out) ── out.put(piece) ──> uvicorn ──> client
          │              waits while the client does not read, at most STALLED_S
          └ is cancelled when the client goes away, or is taken for gone

The status is sent with the first piece: what fails before it is an ordinary JSON error.
"""

from __future__ import annotations

import binascii
import json
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Generic, TypeVar

import anyio
import anyio.lowlevel
from starlette.requests import Request
from starlette.types import Message, Receive, Scope, Send

from casemate import errors
from casemate.api.errors import the_error
from casemate.sandbox.execs import Output

STALLED_S = 600.0  # a client that takes nothing for so long was stopped, or its host is gone without a word
KEEP_ALIVE_S = 4.0  # promised: a line at least every 5 s
KEEP_ALIVE = b'{"event":"keepalive"}\n'
T = TypeVar("T")


class Out:
    """The body of a response under way."""

    def __init__(self, send: Send, status: int, media_type: str) -> None:
        self.started = False
        self._send = send
        self._start: Message = {
            "type": "http.response.start",
            "status": status,
            "headers": [(b"content-type", media_type.encode())],
        }
        self._turn = anyio.Lock(fast_acquire=True)
        self._sent_at = time.monotonic()
        self.give_up: Callable[[], None] = lambda: None  # ends the work as if the client had gone

    async def put(self, piece: bytes, *, last: bool = False) -> None:
        """Send *piece*; waits while the client has not read what went before."""
        async with self._turn:
            with anyio.move_on_after(STALLED_S) as limit:
                if not self.started:
                    self.started = True
                    await self._send(self._start)
                await self._send({"type": "http.response.body", "body": piece, "more_body": not last})
                self._sent_at = time.monotonic()
            if limit.cancelled_caught:
                self.give_up()
                await anyio.lowlevel.checkpoint()

    async def keep_alive(self) -> None:
        """Put a line whenever nothing else was for a while, once the response has begun."""
        while True:
            quiet_s = time.monotonic() - self._sent_at
            if self.started and quiet_s >= KEEP_ALIVE_S:
                await self.put(KEEP_ALIVE)
            await anyio.sleep(max(KEEP_ALIVE_S - quiet_s, 0.1) if self.started else 0.5)


class Lines(Out):
    """NDJSON: one JSON object a line."""

    async def say(self, body: Mapping[str, Any]) -> None:
        await self.put(json.dumps(body, separators=(",", ":"), default=str).encode() + b"\n")

    async def say_output(self, output: Output) -> None:
        text = binascii.b2a_base64(output.data, newline=False)
        await self.put(b'{"event":"%b","offset":%d,"data":"%b"}\n' % (output.stream.encode(), output.offset, text))


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
    ) -> None:
        self._kind = kind
        self._produce = produce
        self._status = status
        self._media_type = media_type

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        out = self._kind(send, self._status, self._media_type)
        failure: errors.CasemateError | None = None
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(cancel_when_gone, receive, tasks.cancel_scope)
            out.give_up = tasks.cancel_scope.cancel
            if isinstance(out, Lines):
                tasks.start_soon(out.keep_alive)
            try:
                await self._produce(out)
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


def octets(produce: Callable[[Out], Awaitable[None]]) -> Streamed[Out]:
    return Streamed(Out, produce, media_type="application/octet-stream")


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
