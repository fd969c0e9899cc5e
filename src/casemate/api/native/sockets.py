"""WebSockets: what is wrong before one is open is an HTTP error, afterwards a last message that says so."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from casemate import errors
from casemate.api.errors import answer, the_error

MESSAGE_BYTES = 65_536
Handler = Callable[[WebSocket], Awaitable[None]]


class Talk:
    """An open WebSocket. One task receives, others send."""

    def __init__(self, socket: WebSocket) -> None:
        self._socket = socket

    async def receive(self) -> bytes | str | None:
        """The next message: bytes, or the text of an object; None when the client has left."""
        try:
            message = await self._socket.receive()
        except WebSocketDisconnect:
            return None
        if message["type"] == "websocket.disconnect":
            return None
        data: bytes | str | None = message.get("bytes")
        return message["text"] if data is None else data

    async def put(self, data: bytes) -> None:
        """Waits while the client does not read. Does nothing when it has left: receive says that."""
        if self._socket.application_state is WebSocketState.CONNECTED:
            await self._send(self._socket.send_bytes, data)

    async def say(self, body: Mapping[str, Any]) -> None:
        await self._send(self._socket.send_text, json.dumps(body, separators=(",", ":"), default=str))

    async def _send(self, send: Callable[[Any], Awaitable[None]], data: bytes | str) -> None:
        try:
            await send(data)
        except (WebSocketDisconnect, RuntimeError):  # the second: starlette's for a socket that was closed meanwhile
            if self._socket.application_state is WebSocketState.CONNECTED:
                raise

    async def close(self) -> None:
        if self._socket.application_state is WebSocketState.CONNECTED:
            await self._send(lambda _: self._socket.close(), b"")


async def served(socket: WebSocket, act: Callable[[Talk], Awaitable[None]]) -> None:
    """Accept, *act*, close. What *act* raises of ours is told to the client as its last message."""
    await socket.accept()
    talk = Talk(socket)
    try:
        await act(talk)
    except (errors.CasemateError, TimeoutError, BaseExceptionGroup) as raised:
        error = (
            errors.RequestError("nothing was said in time") if isinstance(raised, TimeoutError) else the_error(raised)
        )
        if error is None:
            raise
        await talk.say({"event": "error", "error": error.to_json()})
    await talk.close()


def guarded(handler: Handler) -> Handler:
    """*handler*, whose errors before it accepts are answered with their status."""

    async def handle(socket: WebSocket) -> None:
        try:
            await handler(socket)
        except errors.CasemateError as error:
            await socket.send_denial_response(answer(error))

    return handle
