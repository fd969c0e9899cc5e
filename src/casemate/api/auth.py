"""From a credential to a Principal: the only place that does it.

    unix socket   the kernel's word on who opened the other end (SO_PEERCRED) ──┐
    TCP           Host and Origin, then ``Authorization: Bearer cm_…``         ──┴─> Principal ─> scope ─> app

``Connection`` puts the peer into each request's scope; without one nobody gets in.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from casemate.api.connections import Address, Peer
from casemate.api.errors import answer
from casemate.api.hosts import LOOPBACK, check_host, check_origin
from casemate.api.keys import Keys, id_in
from casemate.api.principal import EVERYTHING, LOCAL_TENANT, NOUNS, Principal, is_local_only, principal, scope_of
from casemate.api.throttle import Throttle
from casemate.audit import Tally
from casemate.errors import CasemateError, Forbidden, RateLimited, Unauthorized
from casemate.storage import KeyRow

__all__ = ["Authenticated", "Doors", "Principal", "principal"]
ROOT = 0
# What a user of this host gets who is not the daemon's own: everything of their tenant, nothing of the operator's.
USERS_SCOPES = frozenset(f"{noun}:write" for noun in NOUNS.values() if noun)


@dataclass(frozen=True, slots=True)
class Doors:
    """Who may come in, and by which names. *names*: hosts that requests over TCP may call us.

    *proxies*: when there are any, only they may connect over TCP, and the last address in their
    ``X-Forwarded-For`` is whom a request is counted against.
    """

    keys: Keys
    accepted: Tally
    refused: Tally
    names: frozenset[str] = frozenset(LOOPBACK)
    proxies: tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...] = ()
    tenants_by_uid: Mapping[int, str] | None = None


class Authenticated:
    """Lets a request through with its Principal in its scope, or answers it with 401, 403 or 429.

    A key that is revoked, or expires, also ends what was begun with it.
    """

    def __init__(self, app: ASGIApp, doors: Doors) -> None:
        self._app = app
        self._doors = doors
        self._own = frozenset({ROOT, os.geteuid()})
        self._failures = Throttle()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await self._app(scope, receive, send)
        source, actor = "unknown", "nobody"
        try:
            who = _peer(scope)
            source = _source(who)
            if isinstance(who, Peer):
                found, row = self._of_peer(who), None
            else:
                headers = Headers(scope=scope)
                source = self._counted_against(who, headers)
                check_host(headers.getlist("host"), self._doors.names)
                check_origin(headers.getlist("origin"), self._doors.names)
                found, row = self._of_key(headers.getlist("authorization"), source)
            actor = found.key_id
            _check_scope(found, scope)
        except CasemateError as refusal:
            detail = {"code": refusal.code, "message": refusal.message, **refusal.evidence}
            await self._doors.refused.note(tenant="system", actor=actor, subject=source, detail=detail)
            return await _refuse(refusal, scope, receive, send)
        await self._doors.accepted.note(tenant=found.tenant, actor=found.key_id, subject=source, detail={})
        scope["principal"] = found
        if row is None:
            return await self._app(scope, receive, send)
        sent = _Sent(send)
        with self._doors.keys.while_good(row) as permission:
            await self._app(scope, receive, sent)
        if permission.cancelled_caught and not sent.begun:
            await _refuse(Unauthorized("the key was revoked or has expired"), scope, receive, send)
        return None

    def _of_peer(self, peer: Peer) -> Principal:
        if peer.uid in self._own:
            return Principal(LOCAL_TENANT, f"uid:{peer.uid}", frozenset({EVERYTHING}), local=True)
        tenant = (self._doors.tenants_by_uid or {}).get(peer.uid)
        if tenant is None:
            raise Forbidden(
                f"uid {peer.uid} may not use this daemon",
                hint="run as the user whose daemon this is, or have it name you in tenants_by_uid",
            )
        return Principal(tenant, f"uid:{peer.uid}", USERS_SCOPES)

    def _counted_against(self, address: Address, headers: Headers) -> str:
        if not self._doors.proxies:
            return address.source
        if not _within(address.host, self._doors.proxies):
            raise Forbidden(f"{address.host} is not the proxy this daemon is behind")
        forwarded = headers.getlist("x-forwarded-for")
        return forwarded[-1].rpartition(",")[2].strip()[:64] if forwarded else address.source

    def _of_key(self, values: Sequence[str], source: str) -> tuple[Principal, KeyRow]:
        """A good key always gets in: a limit on who shares an address with an attacker would serve the attacker."""
        scheme, _, text = values[0].partition(" ") if len(values) == 1 else ("", "", "")
        try:
            if scheme.lower() != "bearer":
                raise Unauthorized("this needs an API key", hint="set CASEMATE_API_KEY, or send Authorization: Bearer")
            row = self._doors.keys.judge(text.strip())
        except Unauthorized as refusal:
            if (wait_s := self._failures.wait_s(source)) > 0:
                raise RateLimited(
                    "too many wrong API keys from this address",
                    hint="wait, and use a good one",
                    evidence={"retry_after_s": wait_s},
                ) from refusal
            if claimed := id_in(text.strip()):
                refusal.evidence["key_id"] = claimed
            raise
        return Principal(row.tenant, f"key:{row.id}", frozenset(row.scopes)), row


class _Sent:
    """The way out, which remembers whether anything went it."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.begun = False

    async def __call__(self, message: Message) -> None:
        self.begun = True
        await self._send(message)


def _peer(scope: Scope) -> Peer | Address:
    found = scope.get("state", {}).get("peer")
    if isinstance(found, Peer | Address):
        return found
    raise Forbidden("nobody knows who sent this request")


def _source(who: Peer | Address) -> str:
    return f"uid:{who.uid}" if isinstance(who, Peer) else who.source


def _within(host: str, networks: Sequence[ipaddress.IPv4Network | ipaddress.IPv6Network]) -> bool:
    address = ipaddress.ip_address(host)
    return any(address in network for network in networks)


def _check_scope(found: Principal, scope: Scope) -> None:
    """What is not plain reading over HTTP needs more; a WebSocket can do anything, so it counts as writing."""
    path = scope["path"]
    if is_local_only(path) and not found.local:
        raise Forbidden(
            f"{path[:200]} is served on the daemon's unix socket only, to its own user",
            hint="run casemate on the host, as the daemon's user",
        )
    needed = scope_of(scope.get("method", "WEBSOCKET"), path)
    if not found.may(needed):
        raise Forbidden(f"this needs the scope {needed}", evidence={"scope": needed})


async def _refuse(refusal: CasemateError, scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "http" or "websocket.http.response" in scope.get("extensions", {}):
        return await answer(refusal, scope["path"])(scope, receive, send)
    return await send({"type": "websocket.close", "code": 1008, "reason": refusal.code})
