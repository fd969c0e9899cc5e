"""A program on a terminal, over one WebSocket."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from casemate.errors import CasemateError, DaemonUnavailable, from_json
from casemate.sdk.results import ExecEnd, exec_end_from_json

if TYPE_CHECKING:
    from casemate.sdk._async.websocket import AsyncSocket

PIECE_BYTES = 65_536


class AsyncTerminal:
    """A program under way on a terminal of its own. ``output()`` is to be read to its end; then ``end`` says which."""

    def __init__(self, socket: AsyncSocket, started: dict[str, Any]) -> None:
        self.exec_id = str(started["exec_id"])
        self.pid = int(started["pid"])
        self.offset = int(started["stdout_offset"])
        self.end: ExecEnd | None = None
        self._socket = socket

    async def output(self) -> AsyncIterator[bytes]:
        """What appears on the terminal. Not reading holds the program up."""
        while (message := await self._socket.receive()) is not None:
            if isinstance(message, bytes):
                self.offset += len(message)
                yield message
                continue
            event = event_of(message)
            if event.get("event") == "end":
                self.end = exec_end_from_json(event)
                return
        raise DaemonUnavailable("the daemon closed the terminal before its program ended")

    async def feed(self, data: bytes) -> None:
        """Type *data*. Waits while the program does not read; nothing happens when it has ended."""
        with self._unless_over():
            for start in range(0, len(data), PIECE_BYTES):
                await self._socket.send(data[start : start + PIECE_BYTES])

    async def end_input(self) -> None:
        """Ctrl-D: a terminal has no other end of input."""
        await self._say(op="eof")

    async def resize(self, rows: int, cols: int) -> None:
        await self._say(op="resize", rows=rows, cols=cols)

    async def signal(self, name: str) -> None:
        """Send a signal, as ``TERM``, to its process group. Ctrl-C is a key: feed it."""
        await self._say(op="signal", signal=name)

    async def _say(self, **order: Any) -> None:
        with self._unless_over():
            await self._socket.send(json.dumps(order))

    def _unless_over(self) -> suppress:
        # a connection that broke before the end is reported by who reads the output
        return suppress(DaemonUnavailable)


async def first_event(socket: AsyncSocket) -> dict[str, Any]:
    """What the daemon says first. Raises what it refuses with."""
    message = await socket.receive()
    if not isinstance(message, str):
        raise CasemateError("the daemon sent bytes where an object belongs", hint="is CASEMATE_URL a Casemate daemon?")
    return event_of(message)


def event_of(message: str) -> dict[str, Any]:
    """Raises the error that the event says."""
    event = json.loads(message)
    if not isinstance(event, dict):
        raise CasemateError("the daemon sent no object", hint="is CASEMATE_URL a Casemate daemon?")
    if event.get("event") == "error":
        raise from_json(event.get("error") or {})
    return event
