"""The sink: adds events to the chain, one transaction each, and can check the whole of it.

    row 1 <─prev_hash─ row 2 <─prev_hash─ … <─prev_hash─ row n  =  the anchor's event (a file beside the database)

Found: a row changed, removed or put in; rows removed from the end, unless the anchor was taken back with them.
Not found: a host's owner who writes the whole chain anew, and the anchor too. Against that keep the mark that
``verify`` prints somewhere else and hand it to a later one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from casemate.audit import anchor
from casemate.audit.anchor import Mark
from casemate.audit.events import FIRST_PREV_HASH, Event, EventKind
from casemate.audit.news import News
from casemate.storage import Database
from casemate.storage import audit_events as table

MAX_TEXT_CHARS = 2000
PAGE = 1000  # rows that a verification reads at a time, so that others have their turn between
_FIELDS = ("id", "tenant", "host_id", "created_at", "event", "actor", "subject", "detail", "prev_hash")


@dataclass(frozen=True, slots=True)
class Broken:
    """The first event that is not as it was written, or does not follow the one before."""

    id: int
    why: str


@dataclass(frozen=True, slots=True)
class Verification:
    """*head* is the newest event there is; *warnings* are gaps in what can be known, not in the chain."""

    events: int
    head: Mark | None
    broken: Broken | None
    warnings: tuple[Broken, ...]


@dataclass(frozen=True, slots=True)
class Trail:
    database: Database
    host_id: str
    news: News = field(default_factory=News, compare=False)

    @property
    def anchor(self) -> Path:
        return self.database.path.with_name("audit-anchor")

    async def record(
        self,
        event: EventKind | str,
        *,
        tenant: str,
        subject: str,
        actor: str = "host",
        detail: Mapping[str, Any] | None = None,
        along: Callable[[sa.Connection], object] | None = None,
    ) -> Event:
        """Add one event; when this returns it is in the database. Cancelled: it is still added.

        *along* is done in the same transaction: both or neither.

        Raises HostError when the database refuses; ValueError for a kind of event there is not.
        """
        unchained = Event(
            id=0,
            tenant=tenant,
            host_id=self.host_id,
            created_at=time.time(),
            event=EventKind(event).value,
            actor=actor,
            subject=subject[:MAX_TEXT_CHARS],
            detail=_cut(detail or {}),
            prev_hash="",
        )
        act = partial(_append, unchained=unchained, anchor_path=self.anchor, along=along)
        recorded = await self.database.write_then(act, self._set_anchor)
        self.news.tell()
        return recorded

    async def settle(self) -> None:
        """When this returns, a power cut keeps what was recorded before, too. Raises HostError."""
        await self.database.settle()

    async def verify(self) -> Broken | None:
        """Read the whole chain; None when every event is as it was written and none is missing."""
        return (await self.check()).broken

    async def check(self, known: Mark | None = None) -> Verification:
        """As verify, with what was found on the way; *known* is an event that the chain must have had."""
        walk = _Walk()
        while await self.database.read(walk.page):
            pass
        last = await self.database.read(lambda _: anchor.read(self.anchor))
        if last is None and walk.count:
            walk.warnings.append(Broken(walk.count, "there is no anchor: events cut off the end would not be missed"))
        for mark, whose in ((last, "the anchor"), (known, "the mark that was given")):
            if mark is not None and walk.broken is None:
                walk.broken = await self.database.read(_missing, mark, whose)
        return Verification(walk.count, walk.head, walk.broken, tuple(walk.warnings))

    async def listed(self, tenant: str, *, limit: int = 1000) -> list[Event]:
        """A tenant's newest events, newest first."""
        return await self.database.read(_newest, tenant, limit)

    async def newest(self, tenant: str | None, *, limit: int) -> list[Event]:
        """The newest events, oldest of them first; with no *tenant* everybody's."""
        return (await self.database.read(_newest, tenant, limit))[::-1]

    async def after(self, tenant: str | None, event_id: int, *, limit: int) -> list[Event]:
        """The events that follow that one, oldest first; with no *tenant* everybody's."""
        return await self.database.read(_after, tenant, event_id, limit)

    def _set_anchor(self, event: Event) -> None:
        anchor.write(self.anchor, Mark(event.id, event.hash()))


def _append(
    connection: sa.Connection,
    unchained: Event,
    anchor_path: Path,
    along: Callable[[sa.Connection], object] | None,
) -> Event:
    if along is not None:
        along(connection)
    newest = sa.select(table.c.id, table.c.hash).order_by(table.c.id.desc()).limit(1)
    last_id, last_hash = connection.execute(newest).one_or_none() or (0, FIRST_PREV_HASH)
    mark = anchor.read(anchor_path)
    if mark is None and last_id:
        found = _chained(unchained, EventKind.ANCHOR_NEW, last_id, last_hash, {})
    elif mark is not None and (lost := _missing(connection, mark, "the anchor")):
        detail = {"anchor": str(mark), "newest": last_id, "why": lost.why}
        found = _chained(unchained, EventKind.TAIL_LOST, last_id, last_hash, detail)
    else:
        return _insert(connection, replace(unchained, id=last_id + 1, prev_hash=last_hash))
    _insert(connection, found)
    return _insert(connection, replace(unchained, id=found.id + 1, prev_hash=found.hash()))


def _chained(event: Event, kind: EventKind, last_id: int, last_hash: str, detail: Mapping[str, Any]) -> Event:
    """What the trail itself found when it was about to add *event*."""
    return replace(
        event,
        id=last_id + 1,
        tenant="system",
        event=kind.value,
        actor="host",
        subject="audit",
        detail=detail,
        prev_hash=last_hash,
    )


def _insert(connection: sa.Connection, event: Event) -> Event:
    fields = {name: getattr(event, name) for name in _FIELDS}
    row = fields | {"hash": event.hash(), "updated_at": event.created_at, "revision": 1}
    connection.execute(table.insert().values(row))
    return event


class _Walk:
    """Along the chain, a page at a time, up to the first event that is not right."""

    def __init__(self) -> None:
        self.count = 0
        self.head: Mark | None = None
        self.broken: Broken | None = None
        self.warnings: list[Broken] = []

    def page(self, connection: sa.Connection) -> bool:
        """Whether there may be more."""
        rows = connection.execute(table.select().where(table.c.id > self.count).order_by(table.c.id).limit(PAGE))
        found = rows.mappings().all()
        for row in found:
            self.broken = self._look(_event(row), row["hash"])
            if self.broken:
                return False
        return len(found) == PAGE

    def _look(self, event: Event, said_hash: str) -> Broken | None:
        if event.id != self.count + 1:
            return Broken(event.id, f"event {self.count + 1} is missing")
        if event.prev_hash != (self.head.hash if self.head else FIRST_PREV_HASH):
            return Broken(event.id, "it does not follow the event before")
        if event.hash() != said_hash:
            return Broken(event.id, "its fields are not those it was written with")
        self.count, self.head = event.id, Mark(event.id, said_hash)
        if event.event == EventKind.ANCHOR_NEW:
            self.warnings.append(Broken(event.id, "there was no anchor: events cut off before it were not missed"))
        if event.event == EventKind.TAIL_LOST:
            return Broken(event.id, str(event.detail.get("why")))
        return None


def _missing(connection: sa.Connection, mark: Mark, whose: str) -> Broken | None:
    """Whether the chain does not have the event it once had."""
    found = connection.execute(sa.select(table.c.hash).where(table.c.id == mark.id)).scalar()
    if found is None:
        newest = connection.execute(sa.select(sa.func.max(table.c.id))).scalar() or 0
        why = f"{whose} knows event {mark.id}, the newest is {newest}: removed, or lost in a power cut"
        return Broken(newest + 1, why)
    if found != mark.hash:
        return Broken(mark.id, f"{whose} knows another event {mark.id}")
    return None


def _newest(connection: sa.Connection, tenant: str | None, limit: int) -> list[Event]:
    query = _of(tenant).order_by(table.c.id.desc()).limit(limit)
    return [_event(row) for row in connection.execute(query).mappings()]


def _after(connection: sa.Connection, tenant: str | None, event_id: int, limit: int) -> list[Event]:
    query = _of(tenant).where(table.c.id > event_id).order_by(table.c.id).limit(limit)
    return [_event(row) for row in connection.execute(query).mappings()]


def _of(tenant: str | None) -> sa.Select[Any]:
    return table.select() if tenant is None else table.select().where(table.c.tenant == tenant)


def _event(row: sa.RowMapping) -> Event:
    return Event(**{name: row[name] for name in _FIELDS})


def _cut(detail: Mapping[str, Any]) -> dict[str, Any]:
    """A hostile guest's words end up here; they get a line, not the disk."""
    return {k: v[:MAX_TEXT_CHARS] if isinstance(v, str) else v for k, v in detail.items()}
