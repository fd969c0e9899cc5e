"""A sandbox's ports: what listens in it, and connections to them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from casemate.errors import DaemonUnavailable
from casemate.sdk._async.client import AsyncClient
from casemate.sdk._async.terminals import PIECE_BYTES, event_of
from casemate.sdk.results import Listening

if TYPE_CHECKING:
    from casemate.sdk._async.websocket import AsyncSocket


class AsyncConnection:
    """A connection to a port. One may send while another receives; each direction ends by itself."""

    def __init__(self, socket: AsyncSocket) -> None:
        self._socket = socket

    async def send(self, data: bytes) -> None:
        """Waits while the program in the sandbox does not read."""
        for start in range(0, len(data), PIECE_BYTES):
            await self._socket.send(data[start : start + PIECE_BYTES])

    async def end(self) -> None:
        """No more comes from this side; the program may still speak."""
        await self._socket.send('{"op":"eof"}')

    async def receive(self) -> bytes | None:
        """The next piece; None when the program has said all. Raises PortRefused when it reset the connection."""
        while isinstance(message := await self._socket.receive(), str):
            if event_of(message).get("event") == "eof":
                return None
        if message is None:
            raise DaemonUnavailable("the daemon closed a connection before its end")
        return message


class AsyncPorts:
    """Programs of the sandbox are reached on its loopback; nobody else can."""

    def __init__(self, client: AsyncClient, path: str) -> None:
        self._client = client
        self._path = f"{path}/ports"

    async def list(self) -> list[Listening]:
        """The TCP ports that are listened on."""
        found = await self._client.call("GET", self._path)
        return [Listening.from_json(body) for body in found["ports"]]

    @asynccontextmanager
    async def connect(self, port: int) -> AsyncIterator[AsyncConnection]:
        """A connection to *port*; leaving before both directions have ended resets it.

        Raises PortRefused with the guest kernel's errno when nobody listens there.
        """
        async with self._client.socket(f"{self._path}/{port}") as socket:
            yield AsyncConnection(socket)
