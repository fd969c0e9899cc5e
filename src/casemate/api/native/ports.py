"""``/v1/sandboxes/{ref}/ports``: what listens in a guest; ``…/{port}``: a connection to it, over a WebSocket.

Bytes are bytes, both ways. ``{"op": "eof"}`` from the client and ``{"event": "eof"}`` from the server say that one
direction has ended; the socket is closed when both have. A client that leaves before resets the connection.
"""

from __future__ import annotations

from typing import Literal

import anyio
from pydantic import BaseModel, ConfigDict
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.websockets import WebSocket

from casemate.api.native.operations import operation
from casemate.api.native.requests import Body, find_handle, parsed, using
from casemate.api.native.sockets import Talk, together
from casemate.errors import InvalidSpec, StateConflict
from casemate.sandbox import Handle, Sandboxes, ports


class End(Body):
    op: Literal["eof"]


class PortOut(BaseModel):
    model_config = ConfigDict(extra="allow")

    port: int


class PortList(BaseModel):
    ports: list[PortOut]


class Ports:
    def __init__(self, sandboxes: Sandboxes) -> None:
        self._sandboxes = sandboxes

    @operation("List the ports that something listens on", answer=PortList)
    async def list(self, request: Request) -> Response:
        async with using(find_handle(request, self._sandboxes)) as link:
            return JSONResponse({"ports": [port.to_json() for port in await ports.listed(link)]})

    async def connect(self, socket: WebSocket, talk: Talk) -> None:
        """Accepted once the program in the guest has: a refused port is an HTTP error."""
        text = socket.path_params["port"]
        if not text.isdecimal() or len(text) > 5:
            raise InvalidSpec(f"port is {text[:40]!r}; it must be a number")
        handle = find_handle(socket, self._sandboxes)
        async with using(handle) as link, ports.connect(link, int(text)) as there:
            await talk.accept()
            with handle.usage.connected(), handle.usage.looking_on():
                await _carry(handle, there, talk)


async def _carry(handle: Handle, there: ports.Connection, talk: Talk) -> None:
    """Both ways until both have ended or the client leaves. Bytes are use of the sandbox; silence is none."""
    async with together() as tasks:
        tasks.start_soon(talk.watch, tasks.cancel_scope)
        async with anyio.create_task_group() as both:
            both.start_soon(_take_out, handle, there, talk)
            if not await _take_in(handle, there, talk):
                tasks.cancel_scope.cancel()
        tasks.cancel_scope.cancel()


async def _take_out(handle: Handle, there: ports.Connection, talk: Talk) -> None:
    while (piece := await there.read()) is not None:
        handle.usage.touch()
        await talk.put(piece)
    await talk.say({"event": "eof"})


async def _take_in(handle: Handle, there: ports.Connection, talk: Talk) -> bool:
    """False: the client left without an end."""
    while (message := await talk.receive()) is not None:
        await handle.awake()
        if isinstance(message, str):
            parsed(End, message)
            there.finish()
            return True
        try:
            await there.write(message)
        except StateConflict:
            continue  # the program has left; what is still said to it goes nowhere, as with any connection
    return False
