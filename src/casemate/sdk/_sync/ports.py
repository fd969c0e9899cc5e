# Generated from _async/ports.py by tools/generate_sync.py; change that and run it.
"""A sandbox's ports: what listens in it, and connections to them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from casemate.errors import DaemonUnavailable
from casemate.sdk._sync.client import Client
from casemate.sdk._sync.terminals import PIECE_BYTES, event_of
from casemate.sdk.results import Listening

if TYPE_CHECKING:
    from casemate.sdk._sync.websocket import Socket


class Connection:
    """A connection to a port. One may send while another receives; each direction ends by itself."""

    def __init__(self, socket: Socket) -> None:
        self._socket = socket

    def send(self, data: bytes) -> None:
        """Waits while the program in the sandbox does not read."""
        for start in range(0, len(data), PIECE_BYTES):
            self._socket.send(data[start : start + PIECE_BYTES])

    def end(self) -> None:
        """No more comes from this side; the program may still speak."""
        self._socket.send('{"op":"eof"}')

    def receive(self) -> bytes | None:
        """The next piece; None when the program has said all. Raises PortRefused when it reset the connection."""
        while isinstance(message := self._socket.receive(), str):
            if event_of(message).get("event") == "eof":
                return None
        if message is None:
            raise DaemonUnavailable("the daemon closed a connection before its end")
        return message


class Ports:
    """Programs of the sandbox are reached on its loopback; nobody else can."""

    def __init__(self, client: Client, path: str) -> None:
        self._client = client
        self._path = f"{path}/ports"

    def list(self) -> list[Listening]:
        """The TCP ports that are listened on."""
        found = self._client.call("GET", self._path)
        return [Listening.from_json(body) for body in found["ports"]]

    @contextmanager
    def connect(self, port: int) -> Iterator[Connection]:
        """A connection to *port*; leaving before both directions have ended resets it.

        Raises PortRefused with the guest kernel's errno when nobody listens there.
        """
        with self._client.socket(f"{self._path}/{port}") as socket:
            yield Connection(socket)
