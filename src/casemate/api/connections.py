"""One connection as the server has it: who is at the other end, and how much of it we put up with.

    connect ──> head, within HEAD_S and HEAD_BYTES ──> body, whose framing may cost little ──> response, which
    the client must read: one that takes nothing for ``stall_s`` is cut off, and the app sees that it has gone

So a client that trickles, floods or stops costs a bounded amount of memory for a bounded time. Of connections that
have not sent a whole head yet there are at most MAX_WAITING: the one that has waited longest makes room.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import os
import socket
import struct
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from casemate import errors
from casemate.api.errors import MEDIA_TYPE, TooLarge, TooSlow, headers_of, problem, status_of

_UCRED = struct.Struct("iii")
LINGER_S = 2.0
FRAMING = 16  # bytes of chunk framing that one byte of body may cost


@dataclass(frozen=True, slots=True)
class Peer:
    """The process at the other end of a unix socket, as it was when it connected."""

    pid: int
    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class Address:
    """Where a TCP connection comes from: an IP address, of version 4 also where a dual socket maps it into 6."""

    host: str

    @property
    def source(self) -> str:
        """What counts as one source: whoever has an IPv6 address has a whole /64 of them."""
        address = ipaddress.ip_address(self.host)
        return self.host if address.version == 4 else str(ipaddress.ip_network((address, 64), strict=False))


@dataclass(frozen=True, slots=True)
class Limits:
    head_s: float = 10.0
    head_bytes: int = 65_536
    stall_s: float = 300.0
    max_waiting: int = 256
    max_connections: int = 4096


def connection_class(limits: Limits) -> type[Connection]:
    """For one server: its connections count together."""
    return type("Connection", (Connection,), {"limits": limits, "waiting": {}})


class Connection(HttpToolsProtocol):
    """uvicorn's HTTP protocol within limits; it tells the app who connected, and by what: ``scope["state"]``."""

    limits: ClassVar[Limits]
    waiting: ClassVar[dict[Connection, None]]  # no whole head yet, oldest first

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._head_timer: asyncio.TimerHandle | None = None
        self._stall_timer: asyncio.TimerHandle | None = None
        self._fed_bytes = self._body_bytes = 0
        self._in_message = True
        connected = transport.get_extra_info("socket")
        self.app_state = {**self.app_state, "peer": find_peer(connected), "socket": connected}
        if len(self.connections) > self.limits.max_connections:
            return self._refuse(errors.CapacityError("too many connections", hint="close some"))
        self.waiting[self] = None
        if len(self.waiting) > self.limits.max_waiting:
            next(iter(self.waiting)).transport.abort()
        return self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self.waiting.pop(self, None)
        self._stop_timers()
        super().connection_lost(exc)

    def eof_received(self) -> None:
        """Who says no more waits no more: also one that has not read what it was sent, which is not flushed then."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.flow.resume_writing()

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        self._fed_bytes += len(data)
        super().data_received(data)
        overhead = self._fed_bytes - self._body_bytes * (1 + FRAMING)
        if self._in_message and overhead > self.limits.head_bytes + len(data):
            self._refuse(TooLarge(f"the head is over {self.limits.head_bytes} bytes"), 431)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_message = True
        if self._head_timer is None:
            self._await_head()

    def on_headers_complete(self) -> None:
        self.waiting.pop(self, None)
        self._stop_head()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._fed_bytes = self._body_bytes = 0
        self._in_message = False
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        self._refuse(errors.RequestError("this is not HTTP"))

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.cycle.more_body:  # answered before it was all sent: let the answer arrive, then hear no more
            self.loop.call_later(LINGER_S, self._leave, self.cycle)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stop_stall()
        self._stall_timer = self.loop.call_later(self.limits.stall_s, self.transport.abort)

    def resume_writing(self) -> None:
        self._stop_stall()
        super().resume_writing()

    def handle_websocket_upgrade(self) -> None:
        self.waiting.pop(self, None)
        self._stop_timers()
        super().handle_websocket_upgrade()

    def _leave(self, answered: RequestResponseCycle) -> None:
        if self.cycle is answered and answered.more_body:
            self.transport.close()

    def _await_head(self) -> None:
        self._head_timer = self.loop.call_later(self.limits.head_s, self._too_slow)

    def _too_slow(self) -> None:
        self._head_timer = None
        self._refuse(TooSlow(f"the head was not whole within {self.limits.head_s:g} s"))

    def _refuse(self, error: errors.CasemateError, status: int | None = None) -> None:
        """Answer, unless an answer is under way, and close; what else arrives is not looked at."""
        self._stop_timers()
        if self.cycle is not None and not self.cycle.response_complete:
            self.transport.abort()
            return
        status = status or status_of(error)
        body = json.dumps(problem(error, status), separators=(",", ":")).encode() + b"\n"
        head = {"content-type": MEDIA_TYPE, "content-length": str(len(body)), "connection": "close"}
        lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}"]
        lines += [f"{name}: {value}" for name, value in (head | headers_of(error, status)).items()]
        self.transport.write("\r\n".join([*lines, "", ""]).encode() + body)
        self.transport.close()

    def _stop_timers(self) -> None:
        self._stop_head()
        self._stop_stall()

    def _stop_head(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _stop_stall(self) -> None:
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None


def _plain(host: str) -> str:
    address = ipaddress.ip_address(host.partition("%")[0])  # a link-local one names its interface
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)


def find_peer(connection: Any) -> Peer | Address | None:
    """Who is at the other end; None where the kernel no longer knows."""
    if connection is None:
        return None
    if connection.family != socket.AF_UNIX:
        try:
            return Address(_plain(connection.getpeername()[0]))
        except OSError:  # it has gone already
            return None
    with socket.socket(fileno=os.dup(connection.fileno())) as ours:  # an event loop's own object lacks the call
        pid, uid, gid = _UCRED.unpack(ours.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return Peer(pid, uid, gid)
