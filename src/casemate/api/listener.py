"""The server: uvicorn on sockets we bind, over the unix socket and, where it was asked for, over TCP.

An address that other machines reach is refused unless something encrypts: a certificate of ours, or a proxy that
was named. It is bound, and the certificate read, before the daemon gives its privilege up.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn

from casemate.api.connections import Limits, connection_class
from casemate.api.hosts import is_loopback
from casemate.config import Settings
from casemate.errors import HostError, InvalidSpec

BACKLOG = 1024
GRACE_S = 2
MAX_MESSAGE_BYTES = 2**20  # of a WebSocket
TLS_S = 10.0  # for a hand-shake
# A peer that vanished without a word is noticed after about a minute of silence.
KEEP_ALIVE = ((socket.TCP_KEEPIDLE, 30), (socket.TCP_KEEPINTVL, 10), (socket.TCP_KEEPCNT, 3))
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class Listener:
    """A bound TCP socket; *host* as it was asked for."""

    socket: socket.socket
    host: str
    tls: ssl.SSLContext | None

    @property
    def address(self) -> str:
        host, port = self.socket.getsockname()[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def close(self) -> None:
        self.socket.close()


def open_listener(settings: Settings) -> Listener | None:
    """None where none is asked for. Raises InvalidSpec for what is not safe or not an address, HostError."""
    if bool(settings.tls_cert) != bool(settings.tls_key):
        raise InvalidSpec("tls_cert and tls_key belong together", hint="give both: --tls-cert FILE --tls-key FILE")
    if not settings.listen:
        return None
    host, port = split_address(settings.listen)
    tls = _tls(settings.tls_cert, settings.tls_key) if settings.tls_cert else None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise InvalidSpec(f"listen: {host!r} is no address of this host: {error.strerror}") from error
    if not is_loopback(str(address[0])) and tls is None and not settings.behind_proxy:
        raise InvalidSpec(
            f"listen: {settings.listen} can be reached from other machines, and keys would cross the network in clear",
            hint="give --tls-cert and --tls-key, or --behind-proxy with the address of the proxy that does TLS",
        )
    return Listener(_bound(family, kind, protocol, address, settings), host, tls)


def split_address(text: str) -> tuple[str, int]:
    """``HOST:PORT``, ``[V6]:PORT`` or ``:PORT``. Raises InvalidSpec."""
    host, colon, port = text.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65_535 or (":" in bare and host == bare):
        raise InvalidSpec(f"listen: {text[:100]!r} is not HOST:PORT", hint="as 127.0.0.1:8080 or [::1]:8080")
    return bare, int(port)


def proxies_of(settings: Settings) -> tuple[Network, ...]:
    """Raises InvalidSpec."""
    try:
        return tuple(ipaddress.ip_network(text) for text in settings.behind_proxy)
    except ValueError as error:
        raise InvalidSpec(
            f"behind_proxy: {error}", hint="the address the proxy connects from, or its network"
        ) from error


class Server(uvicorn.Server):
    """One server for one socket; signals are the daemon's own business."""

    def __init__(self, app: Any, limits: Limits, tls: ssl.SSLContext | None = None) -> None:
        self._connection = connection_class(limits)
        super().__init__(
            uvicorn.Config(
                app,
                http=self._connection,
                ws="websockets-sansio",
                ws_max_size=MAX_MESSAGE_BYTES,
                ws_per_message_deflate=False,
                ws_ping_timeout=None,  # it would count against a client whose input waits for a guest
                lifespan="off",
                log_config=None,
                access_log=False,
                proxy_headers=False,  # whom to believe about that is for auth.py to say
                server_header=False,
                timeout_graceful_shutdown=GRACE_S,
            )
        )
        self._tls = tls

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's, but a TLS hand-shake has a deadline."""
        connected = partial(self._connection, config=self.config, server_state=self.server_state, app_state={})
        tls: dict[str, Any] = {"ssl": self._tls, "ssl_handshake_timeout": TLS_S} if self._tls else {}
        loop = asyncio.get_running_loop()
        self.servers = [
            await loop.create_server(connected, sock=bound, backlog=BACKLOG, **tls) for bound in sockets or []
        ]
        self.started = True


def _tls(cert: str, key: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(Path(cert).expanduser(), Path(key).expanduser(), password="")
    except (OSError, ssl.SSLError) as error:
        raise HostError(
            f"the certificate {cert} with the key {key} cannot be used: {error}",
            hint="both in PEM, the key without a password, readable by who starts the daemon",
        ) from error
    return context


def _bound(family: int, kind: int, protocol: int, address: Any, settings: Settings) -> socket.socket:
    made = socket.socket(family, kind, protocol)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # what is accepted inherits all of these
        for option, value in KEEP_ALIVE:
            made.setsockopt(socket.IPPROTO_TCP, option, value)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(settings.client_stall_s * 1000))
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        made.bind(address)
        made.listen(BACKLOG)
    except OSError as error:
        made.close()
        raise HostError(f"{settings.listen} cannot be listened on: {error.strerror}", hint="choose another") from error
    return made
