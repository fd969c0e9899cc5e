"""The one stream to the host: the virtio-serial port named `agent`, or a connection (``vsock``).

While the host's end of a port is closed it reads as ended, at once and for ever. So it is watched for *edges*
only: a closed stream wakes us when it opens again, not before. A port takes at most 32 KiB in one
write and gives at most 4 KiB in one read.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable

from casemate.guest.reactor import Reactor, Timer

PORT_NAME = "agent"
WRITE_BYTES = 32_768
READ_BYTES = 4096
TURN_BYTES = 262_144
LOOK_AGAIN_S = 1.0  # in case an edge was missed: a system call a second is under 0.1 % of a core


def find_port(name: str = PORT_NAME, sys_class: str = "/sys/class/virtio-ports") -> str | None:
    """The device node of the virtio-serial port of that name."""
    try:
        ports = sorted(os.listdir(sys_class))
    except FileNotFoundError:
        return None
    for port in ports:
        with open(f"{sys_class}/{port}/name") as file:
            if file.read().strip() == name:
                return f"/dev/{port}"
    return None


def open_port(path: str) -> int:
    return os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)


class Transport:
    """Owns *fd* (non-blocking). *received* gets what came; *lost* is called each time the host's end closes.

    *reopens*: that end may open again, as a port's does.
    """

    def __init__(
        self,
        reactor: Reactor,
        fd: int,
        received: Callable[[bytes], None],
        lost: Callable[[], None],
        read_bytes: int = READ_BYTES,
        *,
        reopens: bool = True,
    ) -> None:
        self._reactor, self._fd = reactor, fd
        self._received, self._lost = received, lost
        self._read_bytes, self._reopens = read_bytes, reopens
        self._connected = True
        self._unsent = memoryview(b"")
        self._blocked = False
        self._more: Timer | None = None
        self._look_again: Timer | None = None
        reactor.watch_edges(fd, self._on_edge)

    def send(self, next_chunk: Callable[[], bytes]) -> None:
        """Write what *next_chunk* gives until it gives nothing or the port is full."""
        try:
            while True:
                if not self._unsent:
                    chunk = next_chunk()
                    if not chunk:
                        break
                    self._unsent = memoryview(chunk)
                self._unsent = self._unsent[os.write(self._fd, self._unsent[:WRITE_BYTES]) :]
        except BlockingIOError:
            self._heed_writable(True)
            return
        except OSError:  # EPIPE and its like: the reading side sees it too, and says so
            self._unsent = memoryview(b"")
        self._heed_writable(False)

    def close(self) -> None:
        for timer in (self._more, self._look_again):
            if timer is not None:
                timer.cancel()
        self._reactor.unwatch(self._fd)
        os.close(self._fd)

    def _heed_writable(self, blocked: bool) -> None:
        """Each piece the host takes is an edge: worth waking for only while something waits to be written."""
        if blocked is not self._blocked:
            self._blocked = blocked
            self._reactor.watch_edges(self._fd, self._on_edge, writable=blocked)

    def _on_edge(self) -> None:
        if self._more is None:
            self._read()

    def _go_on(self) -> None:
        self._more = None
        self._read()

    def _look(self) -> None:
        self._look_again = None
        self._on_edge()

    def _read(self) -> None:
        """Take a bounded share; when there may be more, come back after the others had their turn."""
        pieces: list[bytes] = []
        ended = drained = False
        fd, read_bytes = self._fd, self._read_bytes
        try:
            for _ in range(TURN_BYTES // read_bytes):
                piece = os.read(fd, read_bytes)
                if not piece:
                    ended = True
                    break
                pieces.append(piece)
        except BlockingIOError:
            drained = True
        except OSError:
            ended = True
        if pieces:
            self._connected = True
            self._received(pieces[0] if len(pieces) == 1 else b"".join(pieces))
        if ended:
            self._on_ended()
        elif not drained:
            self._more = self._reactor.call_later(0, self._go_on)

    def _on_ended(self) -> None:
        if self._connected:
            self._connected = False
            self._unsent = memoryview(b"")
            self._lost()
        if self._look_again is None and self._reopens:
            self._look_again = self._reactor.call_later(LOOK_AGAIN_S, self._look)


def adopt_socket(sock: socket.socket) -> int:
    """The descriptor of *sock*, ours from now on."""
    sock.setblocking(False)
    return sock.detach()
