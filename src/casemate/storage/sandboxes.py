"""Rows of the table ``sandboxes``. The first argument of each act is the connection of its transaction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import sqlalchemy as sa

from casemate.errors import StateConflict
from casemate.storage.schema import sandboxes


@dataclass(frozen=True, slots=True)
class SandboxRow:
    """*info* is the whole sandbox object; the other fields are what is searched by."""

    id: str
    tenant: str
    host_id: str
    name: str | None
    image: str
    snapshot_id: str
    state: str
    info: Mapping[str, Any]
    created_at: float
    updated_at: float
    revision: int = 0  # set by storage


def put(connection: sa.Connection, row: SandboxRow) -> None:
    """Insert *row*, or replace the one with its id. Raises StateConflict when its name is taken."""
    values = asdict(row)
    del values["revision"]
    later = values | {"revision": sandboxes.c.revision + 1}
    try:
        done = connection.execute(sandboxes.update().where(sandboxes.c.id == row.id).values(later))
        if done.rowcount == 0:
            connection.execute(sandboxes.insert().values(values | {"revision": 1}))
    except sa.exc.IntegrityError as error:
        if row.name is None or "sandboxes.name" not in str(error.orig):
            raise
        raise StateConflict(
            f"name {row.name!r} is taken by another live sandbox", hint="kill it or choose another name"
        ) from error


def claim(connection: sa.Connection, row: SandboxRow) -> None:
    """Replace the one with its id, which is ``ready``. Raises StateConflict when it is not, or its name is taken."""
    ready = (sandboxes.c.id == row.id) & (sandboxes.c.state == "ready")
    if connection.execute(sandboxes.select().where(ready)).first() is None:
        raise StateConflict(f"sandbox {row.id} is nobody's to claim: it is not ready")
    put(connection, row)


def listed(connection: sa.Connection, tenant: str, *, all: bool = False) -> list[SandboxRow]:
    """A tenant's sandboxes, oldest first; the terminated ones only with *all*."""
    query = sandboxes.select().where(sandboxes.c.tenant == tenant)
    if not all:
        query = query.where(sandboxes.c.state != "terminated")
    return _rows(connection, query)


def live(connection: sa.Connection) -> list[SandboxRow]:
    """Every tenant's sandboxes that are not terminated: what a restarted daemon looks after first."""
    return _rows(connection, sandboxes.select().where(sandboxes.c.state != "terminated"))


def find(connection: sa.Connection, tenant: str, id: str) -> SandboxRow | None:
    query = sandboxes.select().where(sandboxes.c.tenant == tenant, sandboxes.c.id == id)
    return next(iter(_rows(connection, query)), None)


def forget_terminated(connection: sa.Connection, before: float) -> int:
    """Drop the rows of sandboxes terminated before that moment; how many there were."""
    old = (sandboxes.c.state == "terminated") & (sandboxes.c.updated_at < before)
    return connection.execute(sandboxes.delete().where(old)).rowcount


def _rows(connection: sa.Connection, query: sa.Select[Any]) -> list[SandboxRow]:
    ordered = query.order_by(sandboxes.c.created_at, sandboxes.c.id)
    return [SandboxRow(**row) for row in connection.execute(ordered).mappings()]
