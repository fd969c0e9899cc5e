"""Rows of the table ``pools``. The first argument of each act is the connection of its transaction."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

import sqlalchemy as sa

from casemate.storage.schema import pools

Origin = Literal["api", "config"]
_KEY = ("tenant", "image", "vcpus", "memory_mib", "disk_mib", "network")


@dataclass(frozen=True, slots=True)
class PoolRow:
    """How many ready sandboxes of what there are to be; *tenant* is ``system`` where they are for everybody."""

    id: str
    tenant: str
    host_id: str
    image: str
    vcpus: int
    memory_mib: int
    disk_mib: int
    network: str
    min_ready: int
    max_ready: int | None
    target_utilization: float
    schedule: str | None
    origin: Origin
    created_at: float
    updated_at: float
    revision: int = 1


def put(connection: sa.Connection, row: PoolRow) -> PoolRow:
    """Insert *row*, or give the pool of the same tenant, image, shape and network its numbers; as it is now."""
    values = asdict(row)
    same = sa.and_(*(pools.c[name] == values[name] for name in _KEY))
    changes = {
        name: values[name]
        for name in ("min_ready", "max_ready", "target_utilization", "schedule", "origin", "updated_at")
    }
    done = connection.execute(pools.update().where(same).values(changes | {"revision": pools.c.revision + 1}))
    if done.rowcount == 0:
        connection.execute(pools.insert().values(values))
    return PoolRow(**connection.execute(pools.select().where(same)).mappings().one())


def listed(connection: sa.Connection) -> list[PoolRow]:
    """Every tenant's, oldest first."""
    rows = connection.execute(pools.select().order_by(pools.c.created_at, pools.c.id)).mappings()
    return [PoolRow(**row) for row in rows]


def remove(connection: sa.Connection, pool_id: str) -> bool:
    """Whether there was such a pool."""
    return connection.execute(pools.delete().where(pools.c.id == pool_id)).rowcount == 1
