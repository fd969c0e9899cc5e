# Generated from _async/terminals.py by tools/generate_sync.py; change that and run it.
"""A program on a terminal, over one WebSocket."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from casemate.errors import CasemateError, DaemonUnavailable, from_json
from casemate.sdk.results import ExecEnd, exec_end_from_json

if TYPE_CHECKING:
    from casemate.sdk._sync.websocket import Socket

PIECE_BYTES = 65_536


class Terminal:
    """A program under way on a terminal of its own. ``output()`` is to be read to its end; then ``end`` says which."""

    def __init__(self, socket: Socket, started: dict[str, Any]) -> None:
        self.exec_id = str(started["exec_id"])
        self.pid = int(started["pid"])
        self.offset = int(started["stdout_offset"])
        self.end: ExecEnd | None = None
        self._socket = socket

    def output(self) -> Iterator[bytes]:
        """What appears on the terminal. Not reading holds the program up."""
        while (message := self._socket.receive()) is not None:
            if isinstance(message, bytes):
                self.offset += len(message)
                yield message
                continue
            event = event_of(message)
            if event.get("event") == "end":
                self.end = exec_end_from_json(event)
                return
        raise DaemonUnavailable("the daemon closed the terminal before its program ended")

    def feed(self, data: bytes) -> None:
        """Type *data*. Waits while the program does not read; nothing happens when it has ended."""
        with self._unless_over():
            for start in range(0, len(data), PIECE_BYTES):
                self._socket.send(data[start : start + PIECE_BYTES])

    def end_input(self) -> None:
        """Ctrl-D: a terminal has no other end of input."""
        self._say(op="eof")

    def resize(self, rows: int, cols: int) -> None:
        self._say(op="resize", rows=rows, cols=cols)

    def signal(self, name: str) -> None:
        """Send a signal, as ``TERM``, to its process group. Ctrl-C is a key: feed it."""
        self._say(op="signal", signal=name)

    def _say(self, **order: Any) -> None:
        with self._unless_over():
            self._socket.send(json.dumps(order))

    def _unless_over(self) -> suppress:
        # a connection that broke before the end is reported by who reads the output
        return suppress(DaemonUnavailable)


def first_event(socket: Socket) -> dict[str, Any]:
    """What the daemon says first. Raises what it refuses with."""
    message = socket.receive()
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
