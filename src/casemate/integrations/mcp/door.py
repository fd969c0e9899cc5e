"""Who may come in over HTTP, and when a session is over.

A sandbox lives as long as its client is there, and over HTTP nobody says so but the requests: a session is over when
the client ends it (DELETE), when the stream it listened on (GET) has been gone for a while, or, for a client that never
opened one, after a longer time without a request.
"""

from __future__ import annotations

import hmac
import json
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import anyio
from anyio.abc import TaskGroup
from mcp.server.transport_security import (
    RequestBodyLimitMiddleware,
    TransportSecurityMiddleware,
    TransportSecuritySettings,
)
from mcp_types import UNSUPPORTED_PROTOCOL_VERSION
from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from casemate.integrations.mcp.server import SESSION_HEADER

PATH = "/mcp"
VERSION_HEADER = "mcp-protocol-version"
PROBE_BYTES = 65536  # of a request that is only told to come in another version
GONE_S = 5.0  # a client that listened and does not any more may come back within this time
LOOPBACK = ("localhost", "127.0.0.1", "[::1]")

log = logging.getLogger(__name__)
EndSession = Callable[[str], Awaitable[None]]


@dataclass(slots=True)
class _Seen:
    """What is known of a session's client."""

    under_way: int = 0  # its requests, with the stream it listens on
    listened: bool = False
    over: anyio.CancelScope = field(default_factory=anyio.CancelScope)  # its deadline is when the session is over


class Door:
    """ASGI, in front of the SDK's session manager."""

    def __init__(
        self, inner: ASGIApp, end: EndSession, tasks: TaskGroup, *, names: list[str], key: str | None, idle_s: float
    ) -> None:
        self._inner = inner
        self._end = end
        self._tasks = tasks
        self._key = key
        self._idle_s = idle_s
        self._seen: dict[str, _Seen] = {}
        hosts = [*LOOPBACK, *names]
        origins = [f"{scheme}://{host}" for scheme in ("http", "https") for host in hosts]
        self._rebinding = TransportSecurityMiddleware(
            TransportSecuritySettings(
                allowed_hosts=hosts + [f"{host}:*" for host in hosts],
                allowed_origins=origins + [f"{origin}:*" for origin in origins],
            )
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        request = Request(scope)
        answer = await self._refusal(request)
        if answer is not None:
            await answer(scope, receive, send)
            return
        session = request.headers.get(SESSION_HEADER)
        if session is None:
            await self._inner(scope, receive, self._noting(send))
            return
        seen = self._seen.get(session)
        if seen is None:
            await self._inner(scope, receive, send)  # says that there is no such session
            return
        await self._pass(session, seen, request, receive, send)

    async def _refusal(self, request: Request) -> ASGIApp | None:
        refused = await self._rebinding.validate_request(request, is_post=request.method == "POST")
        if refused is not None:
            return refused
        if self._key is not None and not self._knows(request.headers.get("authorization", "")):
            return JSONResponse({"error": "no key, or not the right one"}, 401, {"www-authenticate": "Bearer"})
        if request.url.path.rstrip("/") != PATH:
            return JSONResponse({"error": f"the endpoint is {PATH}"}, 404)
        version = request.headers.get(VERSION_HEADER)
        if version is not None and version not in HANDSHAKE_PROTOCOL_VERSIONS:
            return RequestBodyLimitMiddleware(_other_version, PROBE_BYTES)
        return None

    def _knows(self, authorization: str) -> bool:
        assert self._key is not None
        scheme, _, given = authorization.partition(" ")
        return scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), self._key.encode())

    async def _pass(self, session: str, seen: _Seen, request: Request, receive: Receive, send: Send) -> None:
        seen.under_way += 1
        seen.over.deadline = float("inf")
        seen.listened = seen.listened or request.method == "GET"
        try:
            await self._inner(request.scope, receive, send)
        finally:
            seen.under_way -= 1
            if request.method == "DELETE":
                seen.over.cancel()
            elif not seen.under_way:
                seen.over.deadline = anyio.current_time() + (GONE_S if seen.listened else self._idle_s)

    def _noting(self, send: Send) -> Send:
        """The answer to ``initialize`` names a session that has begun."""

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] < 400:
                for name, value in message.get("headers", ()):
                    if name.lower() == SESSION_HEADER.encode():
                        self._begun(value.decode("latin-1"))
            await send(message)

        return sending

    def _begun(self, session: str) -> None:
        seen = self._seen[session] = _Seen()
        seen.over.deadline = anyio.current_time() + self._idle_s
        self._tasks.start_soon(self._watch, session, seen)

    async def _watch(self, session: str, seen: _Seen) -> None:
        with seen.over:
            await anyio.sleep_forever()
        del self._seen[session]
        await self._end(session)
        log.info("session %s is over", session[:8])


async def _other_version(scope: Scope, receive: Receive, send: Send) -> None:
    """Without sessions (2026-07-28) nobody could say whose a sandbox is, or when it is to go: clients fall back."""
    request = Request(scope, receive)
    version = request.headers[VERSION_HEADER][:40]
    try:
        asked = json.loads(await request.body())
    except (ValueError, RecursionError):
        asked = None
    error = {
        "code": UNSUPPORTED_PROTOCOL_VERSION,
        "message": f"protocol version {version} has no sessions; this server needs one per sandbox",
        "data": {"requested": version, "supported": list(HANDSHAKE_PROTOCOL_VERSIONS)},
    }
    number = asked.get("id") if isinstance(asked, dict) else None
    await JSONResponse({"jsonrpc": "2.0", "id": number, "error": error}, 400)(scope, receive, send)
