"""Rows of the table ``api_keys``. The first argument of each act is the connection of its transaction."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass

import sqlalchemy as sa

from casemate.storage.schema import api_keys


@dataclass(frozen=True, slots=True)
class KeyRow:
    """*hash* is of the secret; times are seconds since 1970."""

    id: str
    tenant: str
    host_id: str
    name: str
    scopes: tuple[str, ...]
    hash: str
    created_at: float
    updated_at: float
    expires_at: float | None = None
    revoked_at: float | None = None
    revision: int = 1


def add(connection: sa.Connection, row: KeyRow) -> None:
    connection.execute(api_keys.insert().values(asdict(row) | {"scopes": list(row.scopes)}))


def listed(connection: sa.Connection) -> list[KeyRow]:
    """Every tenant's, oldest first; the revoked and expired ones too."""
    rows = connection.execute(api_keys.select().order_by(api_keys.c.created_at, api_keys.c.id)).mappings()
    return [KeyRow(**{**row, "scopes": tuple(row["scopes"])}) for row in rows]


def revoke(connection: sa.Connection, key_id: str) -> bool:
    """Whether there was such a key that was not revoked yet."""
    now = time.time()
    changes = {"revoked_at": now, "updated_at": now, "revision": api_keys.c.revision + 1}
    which = (api_keys.c.id == key_id) & api_keys.c.revoked_at.is_(None)
    return connection.execute(api_keys.update().where(which).values(changes)).rowcount == 1
