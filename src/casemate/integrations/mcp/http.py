"""Streamable HTTP: a listener on an address we bind, the SDK's session manager, and the door before it."""

from __future__ import annotations

import ipaddress
import logging
import socket
from dataclasses import dataclass

import anyio
import uvicorn
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from starlette.types import Message, Scope

from casemate.errors import HostError, InvalidSpec
from casemate.integrations.mcp.door import PATH, Door
from casemate.integrations.mcp.server import SESSION_HEADER, make_server
from casemate.integrations.mcp.sessions import Create, open_sessions

SESSIONS = 100
BODY_BYTES = 16 * 2**20  # a file that is written comes in one request
KEY_CHARS = 16
BACKLOG = 128
STOP_S = 5
KEEP_ALIVE_S, LOST_MS = 10, 30_000  # a client whose machine is gone says nothing; the kernel asks

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Listen:
    """Where, and for whom. Raises InvalidSpec when other machines could come in without a key."""

    host: str
    port: int
    key: str | None = None
    anonymous: bool = False
    names: tuple[str, ...] = ()
    idle_s: float = 1800.0

    def __post_init__(self) -> None:
        if self.key is not None and len(self.key) < KEY_CHARS:
            raise InvalidSpec(f"the key has fewer than {KEY_CHARS} characters", hint="openssl rand -hex 32")
        if self.key is None and not self.anonymous and not is_loopback(self.host):
            raise InvalidSpec(
                f"{self.host} can be reached from other machines, and anybody there could run code",
                hint="set CASEMATE_MCP_KEY, or say --allow-anonymous",
            )


def is_loopback(host: str) -> bool:
    address = _address(host)
    return host == "localhost" or (address is not None and address.is_loopback)


def _is_wildcard(host: str) -> bool:
    address = _address(host)
    return not host or (address is not None and address.is_unspecified)


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return None


def serve_http(create: Create, listen: Listen) -> None:
    """Serve clients over HTTP until SIGINT or SIGTERM. Raises HostError when the address can't be had."""
    with _bound(listen) as listener:
        host, port = listener.getsockname()[:2]
        print(f"http://{f'[{host}]' if ':' in host else host}:{port}{PATH}", flush=True)
        anyio.run(_serve, create, listen, listener)


def _bound(listen: Listen) -> socket.socket:
    try:
        found = socket.getaddrinfo(listen.host.strip("[]"), listen.port, type=socket.SOCK_STREAM)
        family, _, _, _, address = found[0]
        listener = socket.create_server(address[:2], family=family, backlog=BACKLOG)
    except OSError as error:
        raise HostError(
            f"{listen.host}:{listen.port}: {error.strerror or error}", hint="choose another with --http HOST:PORT"
        ) from error
    # what is accepted inherits these
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEP_ALIVE_S)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEP_ALIVE_S)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, LOST_MS)
    return listener


async def _serve(create: Create, listen: Listen, listener: socket.socket) -> None:
    async with open_sessions(create) as sessions:
        # when a session is over the door decides
        manager = StreamableHTTPSessionManager(
            make_server(sessions), session_idle_timeout=None, max_request_body_size=BODY_BYTES, max_sessions=SESSIONS
        )

        async def end(session: str) -> None:
            await _delete(manager, session)
            await sessions.end(session)

        async with anyio.create_task_group() as tasks, manager.run():
            names = list(listen.names) + ([] if _is_wildcard(listen.host) else [listen.host])
            door = Door(manager.asgi_app, end, tasks, names=names, key=listen.key, idle_s=listen.idle_s)
            config = uvicorn.Config(
                door, log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=STOP_S, ws="none"
            )
            await uvicorn.Server(config).serve(sockets=[listener])
            tasks.cancel_scope.cancel()


async def _delete(manager: StreamableHTTPSessionManager, session: str) -> None:
    """End a session in the way its client would: the manager has no other."""

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        log.debug("session %s: %s", session[:8], message["type"])

    scope: Scope = {
        "type": "http",
        "http_version": "1.1",
        "method": "DELETE",
        "scheme": "http",
        "path": PATH,
        "query_string": b"",
        "headers": [(SESSION_HEADER.encode(), session.encode())],
    }
    await manager.asgi_app(scope, receive, send)
