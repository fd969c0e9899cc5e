"""``Idempotency-Key`` on a POST: done once, answered again for a day.

    same key, same request    the stored answer, with ``idempotency-replayed: true``
    same key, other request   409 idempotency-conflict
    the first still under way the second waits for it

Only success is stored: what failed had no effect, so it is simply done when it is asked for again. A stream, or an
answer over MAX_KEPT_BYTES, cannot be repeated: asking for it again is a conflict, not a second effect. What is
under way is known in memory only: a daemon that dies takes with it what a half-answered POST had begun.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from casemate.api.errors import answer
from casemate.api.principal import principal
from casemate.api.reading import read_whole
from casemate.errors import CasemateError, IdempotencyConflict, InvalidSpec
from casemate.storage import AnswerRow, Database, answers

KEPT_S = 86_400.0
MAX_KEPT_BYTES = 262_144  # 64 copies of a sandbox, each with its attestation, are half of it
WAIT_S = 90.0  # for the same request under way; a create takes at most its create_timeout_s, 60 s by default
STREAMS = ("application/x-ndjson", "application/octet-stream")
_KEY = re.compile(r"[\x21-\x7e]{1,255}")


class Idempotent:
    def __init__(self, app: ASGIApp, database: Database, host_id: str) -> None:
        self._app = app
        self._database = database
        self._host_id = host_id
        self._under_way: dict[tuple[str, str], anyio.Event] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            return await self._app(scope, receive, send)
        given = Headers(scope=scope).getlist("idempotency-key")
        if not given:
            return await self._app(scope, receive, send)
        try:
            if len(given) > 1 or not _KEY.fullmatch(given[0]):
                raise InvalidSpec("an Idempotency-Key has up to 255 visible ASCII characters")
            tenant, key = principal(Request(scope)).tenant, given[0]
            body = await read_whole(Request(scope, receive))
            asked = _hash(scope, body)
            async with self._alone(tenant, key):
                known = await self._database.write(answers.find_or_admit, tenant, key)
                if known is not None:
                    response = _again(known, asked)
                else:
                    return await self._do(tenant, key, asked, scope, _Replayed(body, receive), send)
        except CasemateError as error:
            response = answer(error, scope["path"])
        return await response(scope, receive, send)

    @asynccontextmanager
    async def _alone(self, tenant: str, key: str) -> AsyncIterator[None]:
        """Nobody else is at this key meanwhile. Raises IdempotencyConflict when that takes too long."""
        with anyio.move_on_after(WAIT_S):
            while (before := self._under_way.get((tenant, key))) is not None:
                await before.wait()
        if (tenant, key) in self._under_way:
            raise IdempotencyConflict(
                "the first request with this Idempotency-Key is still under way",
                hint="ask again later",
                evidence={"retry_after_s": 10},
            )
        done = self._under_way[tenant, key] = anyio.Event()
        try:
            yield
        finally:
            del self._under_way[tenant, key]
            done.set()

    async def _do(self, tenant: str, key: str, asked: str, scope: Scope, receive: Receive, send: Send) -> None:
        held = _Held(send)
        await self._app(scope, receive, held)
        if held.start is not None and 200 <= held.status < 300:
            now = time.time()
            row = AnswerRow(
                tenant, self._host_id, key, asked, held.status, held.media_type, held.body, now, now + KEPT_S
            )
            with anyio.CancelScope(shield=True):  # it is done; that it was done must not be forgotten
                await self._database.write(answers.add, row)
        await held.release()


class _Held:
    """Keeps an answer back until it is stored; lets one that cannot be stored pass at once."""

    def __init__(self, send: Send) -> None:
        self.start: Message | None = None
        self.status = 0
        self.media_type = ""
        self.body: bytes | None = b""
        self._send = send
        self._held: list[Message] = []

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.start, self.status = message, message["status"]
            self.media_type = Headers(raw=message["headers"]).get("content-type", "")
            if self.media_type.startswith(STREAMS):
                self.body = None
        elif self.body is not None:
            self.body += message.get("body", b"")
            if len(self.body) > MAX_KEPT_BYTES:
                self.body = None
        self._held.append(message)
        if self.body is None:
            await self.release()

    async def release(self) -> None:
        held, self._held = self._held, []
        for message in held:
            await self._send(message)


class _Replayed:
    """A receive whose request's body was read already."""

    def __init__(self, body: bytes, receive: Receive) -> None:
        self._body: bytes | None = body
        self._receive = receive

    async def __call__(self) -> Message:
        if self._body is None:
            return await self._receive()
        body, self._body = self._body, None
        return {"type": "http.request", "body": body, "more_body": False}


def _again(known: AnswerRow, asked: str) -> Response:
    """Raises IdempotencyConflict."""
    if known.request != asked:
        raise IdempotencyConflict(
            "this Idempotency-Key was used for another request", hint="a new request takes a new key"
        )
    if known.body is None:
        raise IdempotencyConflict(
            "the request with this Idempotency-Key was done; its answer cannot be repeated",
            hint="look at what it made, or send a new key",
        )
    headers = {"content-type": known.media_type, "idempotency-replayed": "true"}
    return Response(known.body, known.status, headers)


def _hash(scope: Scope, body: bytes) -> str:
    parts = (scope["method"].encode(), scope["raw_path"], scope["query_string"], body)
    return hashlib.sha256(b"".join(len(part).to_bytes(8, "big") + part for part in parts)).hexdigest()
