"""From a credential to a Principal: the only place that does it.

The credential of a unix socket is the kernel's word on who opened the other end (SO_PEERCRED).
``PeerProtocol`` puts it into each request's scope; ``Authenticated`` judges it.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from dataclasses import dataclass
from typing import Any

from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from casemate.api.errors import answer
from casemate.errors import Forbidden

LOCAL_TENANT = "local"
_UCRED = struct.Struct("iii")


@dataclass(frozen=True, slots=True)
class Principal:
    """On whose behalf a request is made, and what it may do (``*``: everything)."""

    tenant: str
    key_id: str
    scopes: frozenset[str]


@dataclass(frozen=True, slots=True)
class Peer:
    """The process at the other end of a unix socket, as it was when it connected."""

    pid: int
    uid: int
    gid: int


class PeerProtocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol, which also tells the app who connected: ``scope["state"]["peer"]``."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        peer = find_peer(transport.get_extra_info("socket"))
        if peer is not None:
            self.app_state = {**self.app_state, "peer": peer}


class Authenticated:
    """Lets the daemon's own user and root in, as the principal of the local tenant; others get 403.

    Without a peer in the scope the server is not PeerProtocol; then the socket's mode has judged.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._allowed = frozenset({0, os.geteuid()})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await self._app(scope, receive, send)
        peer: Peer | None = scope.get("state", {}).get("peer")
        if peer is not None and peer.uid not in self._allowed:
            refusal = Forbidden(f"uid {peer.uid} may not use this daemon", hint="run as the user whose daemon this is")
            refuse = WebSocket(scope, receive, send).send_denial_response if scope["type"] == "websocket" else None
            return await (refuse(answer(refusal)) if refuse else answer(refusal)(scope, receive, send))
        key_id = f"uid:{peer.uid}" if peer is not None else "socket"
        scope["principal"] = Principal(LOCAL_TENANT, key_id, frozenset({"*"}))
        return await self._app(scope, receive, send)


def principal(request: HTTPConnection) -> Principal:
    found = request.scope["principal"]
    assert isinstance(found, Principal)
    return found


def find_peer(connection: Any) -> Peer | None:
    """Whose process is at the other end; None where it is not a unix socket."""
    if connection is None or connection.family != socket.AF_UNIX:
        return None
    with socket.socket(fileno=os.dup(connection.fileno())) as ours:  # an event loop's own object lacks the call
        pid, uid, gid = _UCRED.unpack(ours.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return Peer(pid, uid, gid)
