"""One WebSocket. Written twice: on a plain socket here, on asyncio in ``_async``.

The library's own threaded client holds one lock while it writes and needs it to read: two full directions would
wait for each other for ever. Here no lock is held over a system call that may wait.
"""

from __future__ import annotations

import select
import socket
import ssl
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.http11 import Response
from websockets.uri import parse_uri

from casemate.sdk.target import Target
from casemate.sdk.websocket import MESSAGE_BYTES, OPEN_S, SILENT_S, Address, broken, mapped

READ_BYTES = 65_536
NORMAL = 1000
_NOT_NOW = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class Socket:
    """One thread may send while another receives. Owns *stream*."""

    def __init__(self, stream: socket.socket, protocol: ClientProtocol, target: Target) -> None:
        self._stream, self._protocol, self._target = stream, protocol, target
        stream.setblocking(False)
        self._lock = threading.Lock()  # of the protocol, what it wants written, and TLS
        self._turn = threading.Lock()  # of who writes
        self._unwritten: deque[bytes] = deque(protocol.data_to_send())
        self._arrived: deque[bytes | str] = deque()
        self._parts: list[bytes] = []
        self._is_text = False
        self._is_open = False

    def send(self, message: bytes | str) -> None:
        """Waits while the daemon does not read. Raises DaemonUnavailable."""
        with mapped(self._target):
            with self._lock:
                if isinstance(message, str):
                    self._protocol.send_text(message.encode())
                else:
                    self._protocol.send_binary(message)
                self._unwritten.extend(self._protocol.data_to_send())
            with self._turn:
                self._write()

    def receive(self) -> bytes | str | None:
        """The next message; None when the daemon has said all. Raises DaemonUnavailable."""
        with mapped(self._target):
            while not self._arrived:
                if self._protocol.close_rcvd is not None:
                    if self._protocol.close_rcvd.code != NORMAL:
                        raise broken(self._target, self._protocol.close_rcvd.reason or "it was closed")
                    return None
                self._read(SILENT_S)
            return self._arrived.popleft()

    def open(self) -> None:
        """Raises what the daemon says instead, OSError, InvalidHandshake."""
        self._write()
        while not self._is_open:
            self._read(OPEN_S)
            if self._protocol.handshake_exc is not None:
                raise self._protocol.handshake_exc

    def close(self) -> None:
        """Say good-bye as far as that goes at once; the daemon takes the end of the connection as well."""
        with suppress(OSError):
            if self._turn.acquire(blocking=False):
                with self._lock:
                    if self._is_open and self._protocol.close_sent is None:
                        self._protocol.send_close(NORMAL)
                        self._unwritten.extend(piece for piece in self._protocol.data_to_send() if piece)
                self._write(wait=False)
            self._stream.shutdown(socket.SHUT_RDWR)  # wakes a thread that still reads or writes
        self._stream.close()

    def _read(self, limit_s: float) -> None:
        with self._lock:
            held = self._stream.pending() if isinstance(self._stream, ssl.SSLSocket) else 0
        if not held:
            self._wait(select.POLLIN, limit_s)
        with self._lock:
            try:
                data = self._stream.recv(READ_BYTES)
            except _NOT_NOW:
                return
            if not data and self._protocol.close_rcvd is None:
                raise broken(self._target, "it was cut off")
            self._protocol.receive_data(data)
            self._take()
            self._unwritten.extend(piece for piece in self._protocol.data_to_send() if piece)
        if self._turn.acquire(blocking=False):  # or else who writes now writes a pong, too
            try:
                self._write()
            finally:
                self._turn.release()

    def _take(self) -> None:
        for event in self._protocol.events_received():
            if isinstance(event, Response):
                self._is_open = self._protocol.handshake_exc is None
            elif isinstance(event, Frame) and event.opcode in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
                if event.opcode is not Opcode.CONT:
                    self._is_text = event.opcode is Opcode.TEXT
                self._parts.append(bytes(event.data))
                if event.fin:
                    whole, self._parts = b"".join(self._parts), []
                    self._arrived.append(whole.decode() if self._is_text else whole)

    def _write(self, *, wait: bool = True) -> None:
        """What is to be written; for who has the turn."""
        while True:
            with self._lock:
                if not self._unwritten:
                    return
                piece = self._unwritten.popleft()
            view = memoryview(piece)
            while view:
                try:
                    with self._lock:
                        view = view[self._stream.send(view) :]
                except _NOT_NOW:
                    if not wait:
                        return
                    self._wait(select.POLLOUT, None)

    def _wait(self, what: int, limit_s: float | None) -> None:
        poller = select.poll()
        poller.register(self._stream, what)
        if not poller.poll(limit_s * 1000 if limit_s is not None else None):
            raise TimeoutError


@contextmanager
def open_socket(address: Address, target: Target) -> Iterator[Socket]:
    """Raises what the daemon says instead of opening one, DaemonUnavailable."""
    protocol = ClientProtocol(parse_uri(address.uri), max_size=MESSAGE_BYTES)
    request = protocol.connect()
    request.headers.update(dict(address.headers))
    protocol.send_request(request)
    with mapped(target):
        opened = Socket(_connected(address), protocol, target)
    try:
        with mapped(target):
            opened.open()
        yield opened
    finally:
        opened.close()


def _connected(address: Address) -> socket.socket:
    if address.unix is None:
        plain = socket.create_connection((address.host, address.port), OPEN_S)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return address.tls.wrap_socket(plain, server_hostname=address.host) if address.tls else plain
    stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        stream.settimeout(OPEN_S)
        stream.connect(address.unix)
    except OSError:
        stream.close()
        raise
    return stream
