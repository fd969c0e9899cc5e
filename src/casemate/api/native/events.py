"""``/v1/events``: what happened, as a list or as it happens; ``/v1/audit``: whether the record of it is whole."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import Any

import anyio
from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from casemate.api.auth import principal
from casemate.api.native.operations import JSON, NDJSON, operation
from casemate.api.native.requests import Query, read_query
from casemate.api.native.streams import Lines, lines
from casemate.api.principal import ADMIN
from casemate.audit import Broken, Event, Mark, Trail
from casemate.errors import Forbidden

MAX_EVENTS = 1000
LOOK_AGAIN_S = 30.0  # should an event ever go unannounced


class EventsQuery(Query):
    """*after*: the id of an event that was seen; without it the newest *limit*, with *follow* only new ones."""

    after: int | None = Field(None, ge=0, le=2**62)
    limit: int = Field(100, ge=1, le=MAX_EVENTS)
    follow: bool = False
    all_tenants: bool = False


class EventOut(BaseModel):
    id: int
    tenant: str
    host_id: str
    created_at: float
    event: str
    actor: str
    subject: str
    detail: dict[str, Any]
    prev_hash: str
    hash: str


class EventList(BaseModel):
    """Oldest first; *next* is what to send as ``after``."""

    events: list[EventOut]
    next: int


class AuditQuery(Query):
    """*mark*: ID:HASH of an event that an earlier verification saw last."""

    mark: str | None = Field(None, max_length=100)


class Gap(BaseModel):
    id: int
    why: str


class AuditOut(BaseModel):
    ok: bool
    events: int
    mark: str | None
    broken: Gap | None
    warnings: list[Gap]


class Events:
    def __init__(self, trail: Trail) -> None:
        self._trail = trail

    @operation("List what happened, or follow it as lines", query=EventsQuery, answer=EventList, gives=(JSON, NDJSON))
    async def list(self, request: Request) -> Response | ASGIApp:
        query = read_query(request, EventsQuery)
        tenant = self._tenant(request, query)
        if query.follow:
            after = query.after if query.after is not None else await self._newest()
            return lines(partial(self._follow, tenant, after))
        if query.after is None:
            found = await self._trail.newest(tenant, limit=query.limit)
        else:
            found = await self._trail.after(tenant, query.after, limit=query.limit)
        following = found[-1].id if found else query.after or 0
        said = EventList(events=[shown(event) for event in found], next=following)
        return Response(said.model_dump_json(), media_type=JSON)

    @operation("Check the whole chain of events", query=AuditQuery, answer=AuditOut)
    async def verify(self, request: Request) -> Response:
        query = read_query(request, AuditQuery)
        found = await self._trail.check(Mark.parse(query.mark) if query.mark else None)
        said = AuditOut(
            ok=found.broken is None,
            events=found.events,
            mark=str(found.head) if found.head else None,
            broken=_gap(found.broken) if found.broken else None,
            warnings=[_gap(warning) for warning in found.warnings],
        )
        return Response(said.model_dump_json(), media_type=JSON)

    def _tenant(self, request: Request, query: EventsQuery) -> str | None:
        asking = principal(request)
        if not query.all_tenants:
            return asking.tenant
        if not asking.may(ADMIN):
            raise Forbidden(f"all_tenants needs the scope {ADMIN}", evidence={"scope": ADMIN})
        return None

    async def _newest(self) -> int:
        newest = await self._trail.newest(None, limit=1)
        return newest[-1].id if newest else 0

    async def _follow(self, tenant: str | None, after: int, out: Lines) -> None:
        await out.say({"event": "following", "after": after})
        while True:
            more = self._trail.news.next()
            found = await self._trail.after(tenant, after, limit=MAX_EVENTS)
            for event in found:
                after = event.id
                await out.say(shown(event).model_dump())
            if not found:
                with anyio.move_on_after(LOOK_AGAIN_S):
                    await more.wait()


def shown(event: Event) -> EventOut:
    return EventOut(**asdict(event), hash=event.hash())


def _gap(broken: Broken) -> Gap:
    return Gap(id=broken.id, why=broken.why)
