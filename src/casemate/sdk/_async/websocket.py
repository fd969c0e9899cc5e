"""One WebSocket. Written twice: on asyncio here, on a plain socket that two threads may share in ``_sync``."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from websockets.asyncio.client import ClientConnection, connect, unix_connect
from websockets.exceptions import ConnectionClosedOK

from casemate.sdk.target import Target
from casemate.sdk.websocket import CLOSE_S, MESSAGE_BYTES, OPEN_S, Address, mapped


class AsyncSocket:
    """One task may send while another receives."""

    def __init__(self, connection: ClientConnection, target: Target) -> None:
        self._connection, self._target = connection, target

    async def send(self, message: bytes | str) -> None:
        """Waits while the daemon does not read. Raises DaemonUnavailable."""
        with mapped(self._target):
            await self._connection.send(message)

    async def receive(self) -> bytes | str | None:
        """The next message; None when the daemon has said all. Raises DaemonUnavailable."""
        with mapped(self._target):
            try:
                return await self._connection.recv()
            except ConnectionClosedOK:
                return None


@asynccontextmanager
async def open_socket(address: Address, target: Target) -> AsyncIterator[AsyncSocket]:
    """Raises what the daemon says instead of opening one, DaemonUnavailable."""
    settings: dict[str, Any] = {
        "additional_headers": dict(address.headers),
        "compression": None,
        "open_timeout": OPEN_S,
        "close_timeout": CLOSE_S,
        "max_size": MESSAGE_BYTES,
        "proxy": None,
    }
    with mapped(target):
        if address.unix is not None:
            connection = await unix_connect(address.unix, address.uri, **settings)
        else:
            connection = await connect(address.uri, ssl=address.tls, **settings)
    try:
        yield AsyncSocket(connection, target)
    finally:
        await connection.close()
