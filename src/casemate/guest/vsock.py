"""The stream where the machine has a vsock: the host connects to a port that the agent listens on, again and again.

When the machine is saved the kernel breaks the connection, in who goes on and in who is restored; what listens stays.
The last connection counts: who makes a new one has given the old one up. Processes of the guest's own may reach the
port, too, and are turned away: only root can pretend to be the host, and root can do to the agent what it likes.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
from collections.abc import Callable
from typing import Any

from casemate.guest.reactor import Reactor
from casemate.guest.transport import Transport, adopt_socket

PORT = 1024
DEVICE = "/dev/vsock"
READ_BYTES = 65_536
BACKLOG = 16
_GET_LOCAL_CID = 0x7B9  # Source: linux/vm_sockets.h
_NOBODY_NOW = (errno.EAGAIN, errno.ECONNABORTED, errno.ECONNRESET)


def is_there() -> bool:
    """Whether this machine has one: the device node alone is the driver's."""
    try:
        device = os.open(DEVICE, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:  # no node, or one without a device behind it
        return False
    try:
        cid = struct.unpack("I", fcntl.ioctl(device, _GET_LOCAL_CID, bytes(4)))[0]
    finally:
        os.close(device)
    return bool(socket.VMADDR_CID_HOST < cid < socket.VMADDR_CID_ANY)  # those below are no machine's


def listen(port: int = PORT) -> socket.socket:
    listening = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    listening.bind((socket.VMADDR_CID_ANY, port))
    listening.listen(BACKLOG)
    return listening


def is_host(peer: Any) -> bool:
    return bool(peer[0] == socket.VMADDR_CID_HOST)


class Listener:
    """Owns *listening* and the one connection. *received* gets what came; *lost* is called each time that ends."""

    def __init__(
        self,
        reactor: Reactor,
        listening: socket.socket,
        received: Callable[[bytes], None],
        lost: Callable[[], None],
        is_welcome: Callable[[Any], bool] = is_host,
    ) -> None:
        self._reactor, self._listening = reactor, listening
        self._received, self._lost, self._is_welcome = received, lost, is_welcome
        self._stream: Transport | None = None
        listening.setblocking(False)
        reactor.watch(listening.fileno(), self._accept)

    def send(self, next_chunk: Callable[[], bytes]) -> None:
        """As a Transport; asks for nothing while nobody is connected."""
        if self._stream is not None:
            self._stream.send(next_chunk)

    def close(self) -> None:
        self._reactor.unwatch(self._listening.fileno())
        self._listening.close()
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _accept(self) -> None:
        try:
            connection, peer = self._listening.accept()
        except OSError as error:
            if error.errno not in _NOBODY_NOW:
                raise
            return
        if not self._is_welcome(peer):
            connection.close()
            return
        self._drop()
        fd = adopt_socket(connection)
        self._stream = Transport(self._reactor, fd, self._received, self._drop, READ_BYTES, reopens=False)

    def _drop(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None
            self._lost()
