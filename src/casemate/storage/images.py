"""Rows of ``images``, ``image_versions`` and ``snapshots``.

image (tenant, name) -> version (1, 2, …; configuration fixed) -> snapshots, one per shape and platform.
A version is *built* from artifacts, or a *session*: a sandbox as it was at one moment, with the one snapshot it is.
The first argument of each act is the connection of its transaction.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import sqlalchemy as sa

from casemate.errors import NotFound
from casemate.storage.schema import image_versions, images, snapshots

VersionState = Literal["pending", "building", "ready", "failed"]
VersionKind = Literal["built", "session"]
SnapshotState = Literal["building", "ready", "failed"]
MAX_LOG_CHARS = 1_000_000


@dataclass(frozen=True, slots=True)
class ImageRow:
    id: int
    tenant: str
    host_id: str
    name: str
    created_at: float
    updated_at: float
    revision: int


@dataclass(frozen=True, slots=True)
class VersionRow:
    """*name* is its image's; *artifacts* maps what (kernel, initrd, root, agent) to a sha256.

    *parent*: of a session, the reference of the version its sandbox stood on.
    """

    id: int
    tenant: str
    host_id: str
    image_id: int
    name: str
    number: int
    config: Mapping[str, Any]
    state: VersionState
    active: bool
    artifacts: Mapping[str, str]
    size_bytes: int
    log: str
    created_at: float
    updated_at: float
    revision: int
    kind: VersionKind = "built"
    parent: str | None = None
    tag: str | None = None

    @property
    def reference(self) -> str:
        return f"{self.name}@{self.number}"

    @property
    def contains_session_state(self) -> bool:
        """Whether a tenant's processes, variables and files are in it: then it is that tenant's alone."""
        return self.kind == "session"


@dataclass(frozen=True, slots=True)
class SnapshotRow:
    """*memory_bytes* is what its memory file takes on the disk."""

    id: str
    tenant: str
    host_id: str
    version_id: int
    vcpus: int
    memory_mib: int
    disk_mib: int
    platform: Mapping[str, Any]
    state: SnapshotState
    memory_bytes: int
    created_at: float = field(default_factory=time.time)
    updated_at: float = field(default_factory=time.time)
    revision: int = 0  # set by storage


def add_version(
    connection: sa.Connection,
    tenant: str,
    host_id: str,
    name: str,
    config: Mapping[str, Any],
    *,
    kind: VersionKind = "built",
    parent: str | None = None,
) -> VersionRow:
    """The next version of *name*, ``pending`` and not active; the image is made with its first one."""
    now = time.time()
    common = {"tenant": tenant, "host_id": host_id, "created_at": now, "updated_at": now, "revision": 1}
    named = (images.c.tenant == tenant) & (images.c.name == name)
    find_image = sa.select(images.c.id).where(named)
    if connection.execute(find_image).scalar() is None:
        connection.execute(images.insert().values(**common, name=name))
    image_id = connection.execute(find_image).scalar_one()
    newest = sa.select(sa.func.max(image_versions.c.number)).where(image_versions.c.image_id == image_id)
    image_revision = connection.execute(sa.select(images.c.revision).where(images.c.id == image_id)).scalar_one()
    # A removed version's number is not given again: the image's revision stays above all it ever gave
    number = max(connection.execute(newest).scalar() or 0, image_revision - 1) + 1
    later = {"revision": number + 1, "updated_at": now}
    connection.execute(images.update().where(images.c.id == image_id).values(later))
    values = {
        "image_id": image_id,
        "number": number,
        "config": dict(config),
        "state": "pending",
        "active": False,
        "kind": kind,
        "parent": parent,
    }
    connection.execute(image_versions.insert().values(**common, **values, artifacts={}, size_bytes=0, log=""))
    return version(connection, tenant, name, number)


def update_version(
    connection: sa.Connection,
    version_id: int,
    *,
    state: VersionState | None = None,
    artifacts: Mapping[str, str] | None = None,
    size_bytes: int | None = None,
    log: str | None = None,
) -> None:
    """Change what is given; the configuration never. A log keeps its last million characters."""
    given: dict[str, Any] = {"state": state, "size_bytes": size_bytes}
    given["artifacts"] = dict(artifacts) if artifacts is not None else None
    given["log"] = log[-MAX_LOG_CHARS:] if log is not None else None
    changes = {name: value for name, value in given.items() if value is not None}
    _change(connection, image_versions, image_versions.c.id == version_id, changes)


def activate(connection: sa.Connection, version_id: int) -> None:
    """Make this version the one its image's bare name means, in place of the one that was."""
    image_id = sa.select(image_versions.c.image_id).where(image_versions.c.id == version_id).scalar_subquery()
    others = (image_versions.c.image_id == image_id) & image_versions.c.active
    _change(connection, image_versions, others & (image_versions.c.id != version_id), {"active": False})
    _change(connection, image_versions, image_versions.c.id == version_id, {"active": True})


def claim_tag(connection: sa.Connection, version_id: int, tag: str) -> None:
    """Give *tag* to this version, in place of the one of its image that had it."""
    image_id = sa.select(image_versions.c.image_id).where(image_versions.c.id == version_id).scalar_subquery()
    had_it = (image_versions.c.image_id == image_id) & (image_versions.c.tag == tag)
    _change(connection, image_versions, had_it & (image_versions.c.id != version_id), {"tag": None})
    _change(connection, image_versions, image_versions.c.id == version_id, {"tag": tag})


def version(connection: sa.Connection, tenant: str, name: str, number: int | None = None) -> VersionRow:
    """Version *number* of an image, the active one without a number. Raises NotFound."""
    which = image_versions.c.active if number is None else image_versions.c.number == number
    found = versions(connection, tenant, (images.c.name == name) & which)
    if not found:
        what = name if number is None else f"{name}@{number}"
        raise NotFound(
            f"there is no image {what[:100]!r}",
            hint="see `casemate image ls`; build one with `casemate setup`",
        )
    return found[0]


def versions(connection: sa.Connection, tenant: str, where: sa.ColumnElement[bool] | None = None) -> list[VersionRow]:
    """A tenant's versions by name, newest first."""
    query = (
        sa.select(image_versions, images.c.name)
        .join(images)
        .where(images.c.tenant == tenant, *([where] if where is not None else []))
        .order_by(images.c.name, image_versions.c.number.desc())
    )
    return [VersionRow(**row) for row in connection.execute(query).mappings()]


def all_versions(connection: sa.Connection) -> list[VersionRow]:
    """Every tenant's, oldest first."""
    query = sa.select(image_versions, images.c.name).join(images).order_by(image_versions.c.id)
    return [VersionRow(**row) for row in connection.execute(query).mappings()]


def delete_version(connection: sa.Connection, version_id: int) -> None:
    """Forget a version and its snapshots. The image stays, so that its numbers are never given twice."""
    connection.execute(snapshots.delete().where(snapshots.c.version_id == version_id))
    connection.execute(image_versions.delete().where(image_versions.c.id == version_id))


def activate_newest(connection: sa.Connection, image_id: int) -> None:
    """Make an image's newest ready version the active one, if it has any."""
    ready = (image_versions.c.image_id == image_id) & (image_versions.c.state == "ready")
    query = sa.select(image_versions.c.id).where(ready).order_by(image_versions.c.number.desc()).limit(1)
    newest = connection.execute(query).scalar()
    if newest is not None:
        activate(connection, newest)


def add_imported(
    connection: sa.Connection,
    tenant: str,
    host_id: str,
    name: str,
    config: Mapping[str, Any],
    artifacts: Mapping[str, str],
    size_bytes: int,
) -> VersionRow:
    """A ready, active version of these artifacts: the one there is with the very same, else the next."""
    for known in versions(connection, tenant, images.c.name == name):
        if known.state == "ready" and known.artifacts == artifacts and known.config == config:
            break
    else:
        known = add_version(connection, tenant, host_id, name, config)
        update_version(connection, known.id, state="ready", artifacts=artifacts, size_bytes=size_bytes)
    activate(connection, known.id)
    return version(connection, tenant, name, known.number)


def listed(connection: sa.Connection, tenant: str) -> list[ImageRow]:
    query = images.select().where(images.c.tenant == tenant).order_by(images.c.name)
    return [ImageRow(**row) for row in connection.execute(query).mappings()]


def fail_unfinished(connection: sa.Connection, reason: str) -> int:
    """Mark what a daemon that died was building as failed; how many there were. For the start only."""
    unfinished = image_versions.c.state.in_(("pending", "building"))
    _change(connection, snapshots, snapshots.c.state == "building", {"state": "failed"})
    return _change(connection, image_versions, unfinished, {"state": "failed", "log": reason})


def unfinished_snapshots(connection: sa.Connection) -> list[str]:
    """The ids of those that were being made."""
    return list(connection.execute(sa.select(snapshots.c.id).where(snapshots.c.state == "building")).scalars())


def put_snapshot(connection: sa.Connection, row: SnapshotRow) -> None:
    """Insert *row*; of one that is there only state and memory_bytes change."""
    changes = {"state": row.state, "memory_bytes": row.memory_bytes}
    if not _change(connection, snapshots, snapshots.c.id == row.id, changes):
        connection.execute(snapshots.insert().values(asdict(row) | {"revision": 1}))


def delete_snapshot(connection: sa.Connection, snapshot_id: str) -> None:
    connection.execute(snapshots.delete().where(snapshots.c.id == snapshot_id))


def version_of(connection: sa.Connection, snapshot_id: str) -> VersionRow | None:
    """The version that a snapshot is one of, whoever's it is; None for a snapshot without a row."""
    of_it = sa.select(snapshots.c.version_id).where(snapshots.c.id == snapshot_id).scalar_subquery()
    query = sa.select(image_versions, images.c.name).join(images).where(image_versions.c.id == of_it)
    row = connection.execute(query).mappings().first()
    return VersionRow(**row) if row is not None else None


def snapshots_of(connection: sa.Connection, version_id: int) -> list[SnapshotRow]:
    query = snapshots.select().where(snapshots.c.version_id == version_id).order_by(snapshots.c.created_at)
    return [SnapshotRow(**row) for row in connection.execute(query).mappings()]


def version_by_snapshot(connection: sa.Connection) -> dict[str, int]:
    """The id of each snapshot's version, of all tenants."""
    return {row.id: row.version_id for row in connection.execute(sa.select(snapshots.c.id, snapshots.c.version_id))}


def _change(
    connection: sa.Connection, table: sa.Table, where: sa.ColumnElement[bool], changes: Mapping[str, Any]
) -> int:
    later = {"updated_at": time.time(), "revision": table.c.revision + 1}
    return connection.execute(table.update().where(where).values({**changes, **later})).rowcount
