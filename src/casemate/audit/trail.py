"""The sink: adds events to the chain, one transaction each, and can check the whole of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa

from casemate.audit.events import FIRST_PREV_HASH, Event, EventKind
from casemate.storage import Database
from casemate.storage import audit_events as table

MAX_TEXT_CHARS = 2000
_FIELDS = ("id", "tenant", "host_id", "created_at", "event", "actor", "subject", "detail", "prev_hash")


@dataclass(frozen=True, slots=True)
class Broken:
    """The first event that is not as it was written, or does not follow the one before."""

    id: int
    why: str


@dataclass(frozen=True, slots=True)
class Trail:
    database: Database
    host_id: str

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
        return await self.database.write(_append, unchained, along)

    async def settle(self) -> None:
        """When this returns, a power cut keeps what was recorded before, too. Raises HostError."""
        await self.database.settle()

    async def verify(self) -> Broken | None:
        """Read the whole chain; None when every event is as it was written."""
        return await self.database.read(_verify)

    async def listed(self, tenant: str, *, limit: int = 1000) -> list[Event]:
        """A tenant's newest events, newest first."""
        return await self.database.read(_listed, tenant, limit)


def _append(connection: sa.Connection, unchained: Event, along: Callable[[sa.Connection], object] | None) -> Event:
    if along is not None:
        along(connection)
    newest = sa.select(table.c.id, table.c.hash).order_by(table.c.id.desc()).limit(1)
    last_id, last_hash = connection.execute(newest).one_or_none() or (0, FIRST_PREV_HASH)
    event = replace(unchained, id=last_id + 1, prev_hash=last_hash)
    fields = {name: getattr(event, name) for name in _FIELDS}
    row = fields | {"hash": event.hash(), "updated_at": event.created_at, "revision": 1}
    connection.execute(table.insert().values(row))
    return event


def _verify(connection: sa.Connection) -> Broken | None:
    expected_id, expected_prev = 1, FIRST_PREV_HASH
    for row in connection.execute(table.select().order_by(table.c.id)).mappings():
        event = _event(row)
        if event.id != expected_id:
            return Broken(event.id, f"event {expected_id} is missing")
        if event.prev_hash != expected_prev:
            return Broken(event.id, "it does not follow the event before")
        if event.hash() != row["hash"]:
            return Broken(event.id, "its fields are not those it was written with")
        expected_id, expected_prev = event.id + 1, row["hash"]
    return None


def _listed(connection: sa.Connection, tenant: str, limit: int) -> list[Event]:
    query = table.select().where(table.c.tenant == tenant).order_by(table.c.id.desc()).limit(limit)
    return [_event(row) for row in connection.execute(query).mappings()]


def _event(row: sa.RowMapping) -> Event:
    return Event(**{name: row[name] for name in _FIELDS})


def _cut(detail: Mapping[str, Any]) -> dict[str, Any]:
    """A hostile guest's words end up here; they get a line, not the disk."""
    return {k: v[:MAX_TEXT_CHARS] if isinstance(v, str) else v for k, v in detail.items()}
