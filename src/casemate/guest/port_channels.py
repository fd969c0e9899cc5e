"""Channels of kind tcp-in: a connection to a port of the guest's loopback, made here; and which ports listen."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections import deque
from typing import Any

from casemate import wire
from casemate.errors import InvalidSpec, PortRefused
from casemate.guest.conversation import Conversation, optional_text, whole
from casemate.guest.listening import listening
from casemate.guest.reactor import Timer

CONNECT_LIMIT_S = 5.0
READ_BYTES = 65_536
_AT_ONCE = struct.pack("ii", 1, 0)  # SO_LINGER: closing resets
_PLACES = ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"))


class PortChannel(Conversation):
    """One connection. Each direction ends by itself; a reset of either side resets the other."""

    _sock: socket.socket | None = None
    _late: Timer | None = None
    _connected = _all_read = _written = False

    def begin(self, params: dict[str, Any]) -> None:
        if optional_text(params, "op") == "list":
            self.accept({"ports": listening()})
            self.finish()
            return
        self._port = whole(params, "port", 0)
        if not 0 < self._port < 65_536:
            raise InvalidSpec("port is a number from 1 to 65535")
        self._queue: deque[tuple[memoryview, int]] = deque()
        self._places = list(_PLACES)
        self._late = self.server.reactor.call_later(CONNECT_LIMIT_S, lambda: self._refuse(errno.ETIMEDOUT))
        self._try_next()

    # --------------------------------------------------------------- connecting

    def _try_next(self) -> None:
        family, address = self._places.pop(0)
        try:
            self._sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
            self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            number = self._sock.connect_ex((address, self._port))
        except OSError as error:
            number = error.errno or errno.EIO
        if number in (0, errno.EINPROGRESS) and self._sock is not None:
            self.server.reactor.watch_writable(self._sock.fileno(), self._on_answer)
        else:
            self._on_refused(number)

    def _on_answer(self) -> None:
        assert self._sock is not None
        number = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if number:
            self._on_refused(number)
            return
        self._stop_clock()
        self._connected = True
        self.accept()
        self.server.reactor.watch_edges(self._sock.fileno(), self._on_ready, writable=True)
        self._on_ready()

    def _on_refused(self, number: int) -> None:
        self._close()
        if self._places and number == errno.ECONNREFUSED:
            self._try_next()
        else:
            self._refuse(number)

    def _refuse(self, number: int) -> None:
        if self.answered:
            return
        self._stop_clock()
        self._close()
        self.deny(
            PortRefused(
                f"port {self._port}: {os.strerror(number)}",
                hint="does a program in the sandbox listen on it? casemate ports SANDBOX",
                evidence={"errno": errno.errorcode.get(number, "EIO")},
            )
        )

    # ----------------------------------------------------------------- carrying

    def _on_ready(self) -> None:
        self._write()
        self._read()

    def _read(self) -> None:
        """From the socket as much as the window takes."""
        connection, number = self.connection, self.number
        while self._sock is not None and not self._all_read:
            room = connection.writable(number)
            if not room:
                connection.send(number, 1, b"\0")  # takes nothing, and on_writable is called when there is credit
                return
            try:
                data = self._sock.recv(min(READ_BYTES, room))
            except BlockingIOError:
                return
            except OSError as error:
                self._break(error)
                return
            if data:
                connection.send(number, 1, data)
            else:
                self._all_read = True
                self.finish()
                self._close_if_over()

    def _write(self) -> None:
        while self._sock is not None and self._queue:
            view, size = self._queue[0]
            try:
                count = self._sock.send(view)
            except BlockingIOError:
                return
            except OSError as error:
                self._break(error)
                return
            if count < len(view):
                self._queue[0] = (view[count:], size)
            else:
                self._queue.popleft()
                self.connection.consumed(self.number, size)
        if self._sock is not None and self.host_finished and not self._queue:
            self._shut()

    def _shut(self) -> None:
        """The host has said all, and so have we to the program."""
        assert self._sock is not None
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError as error:
            if error.errno != errno.ENOTCONN:  # it has left already
                self._break(error)
                return
        self._written = True
        self._close_if_over()

    def _close_if_over(self) -> None:
        if self._written and self._all_read:
            self._close()

    def on_writable(self) -> None:
        self._read()

    def on_data(self, event: wire.Data) -> None:
        if self._sock is None:
            self.connection.consumed(self.number, event.size)
            return
        self._queue.append((memoryview(event.data), event.size))
        if len(self._queue) == 1:
            self._write()

    def on_finished(self) -> None:
        if self._connected and not self._queue and not self._written and self._sock is not None:
            self._shut()

    def on_closed(self, lost: bool) -> None:
        self._stop_clock()
        if self._sock is not None:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
        self._close()

    def _break(self, error: OSError) -> None:
        self._close()
        self.reset(PortRefused.code, f"port {self._port}: {error.strerror}")

    def _stop_clock(self) -> None:
        if self._late is not None:
            self._late.cancel()

    def _close(self) -> None:
        if self._sock is not None:
            self.server.reactor.unwatch(self._sock.fileno())
            self._sock.close()
            self._sock = None
