"""WebSockets: what is wrong before one is accepted is an HTTP error, afterwards a last message that says so."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
from anyio.abc import TaskGroup
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from casemate import errors
from casemate.api.errors import answer
from casemate.api.native.streams import KEEP_ALIVE_S

FIRST_MESSAGE_S = 10.0
Handler = Callable[[WebSocket], Awaitable[None]]


class Talk:
    """A WebSocket. One task receives, others send."""

    def __init__(self, socket: WebSocket) -> None:
        self._socket = socket
        self.accepted = False

    async def accept(self) -> None:
        await self._socket.accept()
        self.accepted = True

    async def receive(self) -> bytes | str | None:
        """The next message: bytes, or the text of an object; None when the client has left."""
        message = await self._socket.receive()
        if message["type"] == "websocket.disconnect":
            return None
        data: bytes | str | None = message.get("bytes")
        return message["text"] if data is None else data

    async def put(self, data: bytes) -> None:
        """Waits while the client does not read. Does nothing when it has left: receive says that."""
        await self._send(self._socket.send_bytes, data)

    async def say(self, body: Mapping[str, Any]) -> None:
        await self.put_text(json.dumps(body, separators=(",", ":"), default=str))

    async def put_text(self, text: str) -> None:
        """As put, for what is an object already."""
        await self._send(self._socket.send_text, text)

    async def put_lines(self, said: Sequence[bytes], _last: bool) -> None:
        """Objects, each a message of its own."""
        for line in said:
            await self.put_text(line.decode())

    async def watch(self, over: anyio.CancelScope) -> None:
        """Cancel *over* when the client has left: while its input waits for a guest nobody receives."""
        while self._is_open():
            await anyio.sleep(KEEP_ALIVE_S)
            await self.say({"event": "keepalive"})
        over.cancel()

    async def close(self) -> None:
        await self._send(self._socket.close, 1000)

    async def _send(self, send: Callable[[Any], Awaitable[None]], what: object) -> None:
        if self._is_open():
            try:
                await send(what)
            except (WebSocketDisconnect, RuntimeError):  # the second: Starlette's, when it was closed meanwhile
                if self._is_open():
                    raise

    def _is_open(self) -> bool:
        states = (self._socket.application_state, self._socket.client_state)
        return all(state is WebSocketState.CONNECTED for state in states)


async def first_text(talk: Talk) -> str:
    """The first message, which says what is wanted: an address is no place for that. Raises RequestError."""
    with anyio.move_on_after(FIRST_MESSAGE_S) as waited:
        first = await talk.receive()
    if waited.cancelled_caught:
        raise errors.RequestError(f"nothing was said within {FIRST_MESSAGE_S:g} s")
    if not isinstance(first, str):
        raise errors.InvalidSpec("the first message must be an object that says what to run")
    return first


@asynccontextmanager
async def together() -> AsyncIterator[TaskGroup]:
    """A task group that raises its first failure as itself, when all are ours: a dead link fails both directions."""
    try:
        async with anyio.create_task_group() as tasks:
            yield tasks
    except BaseExceptionGroup as group:
        ours, others = group.split(errors.CasemateError)
        if others is not None or ours is None:
            raise
        raise next(_leaves(ours)) from group


def _leaves(group: BaseExceptionGroup[errors.CasemateError]) -> Iterator[errors.CasemateError]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


def served(act: Callable[[WebSocket, Talk], Awaitable[None]]) -> Handler:
    """A handler: *act*, which accepts when it sees fit, and close."""

    async def handle(socket: WebSocket) -> None:
        talk = Talk(socket)
        try:
            await act(socket, talk)
        except errors.CasemateError as error:
            if not talk.accepted:
                await socket.send_denial_response(answer(error))
                return
            await talk.say({"event": "error", "error": error.to_json()})
        await talk.close()

    return handle
