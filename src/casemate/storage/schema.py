"""The tables as they are at revision ``SCHEMA``; ``migrations/`` has the ways there."""

from __future__ import annotations

import sqlalchemy as sa

SCHEMA = "0004"  # the newest migration; a test holds it and the tables below to migrations/

SANDBOX_STATES = (
    "ready",
    "pending",
    "running",
    "suspending",
    "suspended",
    "resuming",
    "terminating",
    "terminated",
)
VERSION_STATES = ("pending", "building", "ready", "failed")
VERSION_KINDS = ("built", "session")
SNAPSHOT_STATES = ("building", "ready", "failed")
POOL_ORIGINS = ("api", "config")

metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def _every_row() -> tuple[sa.Column[str], sa.Column[str], sa.Column[float], sa.Column[float], sa.Column[int]]:
    return (
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("host_id", sa.Text, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("updated_at", sa.Double, nullable=False),
        sa.Column("revision", sa.Integer, nullable=False),
    )


def _one_of(column: str, values: tuple[str, ...]) -> sa.CheckConstraint:
    return sa.CheckConstraint(f"{column} IN ({', '.join(repr(v) for v in values)})", name=column)


sandboxes = sa.Table(
    "sandboxes",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    *_every_row(),
    sa.Column("name", sa.Text),
    sa.Column("image", sa.Text, nullable=False),
    sa.Column("snapshot_id", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("info", sa.JSON, nullable=False),  # the whole sandbox object
    _one_of("state", SANDBOX_STATES),
)
_alive = sandboxes.c.state != "terminated"
sa.Index(
    "uq_sandboxes_live_name",
    sandboxes.c.tenant,
    sandboxes.c.name,
    unique=True,
    sqlite_where=_alive,
    postgresql_where=_alive,
)
sa.Index("ix_sandboxes_tenant_state", sandboxes.c.tenant, sandboxes.c.state)

images = sa.Table(
    "images",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    *_every_row(),
    sa.Column("name", sa.Text, nullable=False),
    sa.UniqueConstraint("tenant", "name"),
)

image_versions = sa.Table(
    "image_versions",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    *_every_row(),
    sa.Column("image_id", sa.ForeignKey("images.id"), nullable=False),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("config", sa.JSON, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("active", sa.Boolean, nullable=False),
    sa.Column("artifacts", sa.JSON, nullable=False),  # what -> sha256, once they are made
    sa.Column("size_bytes", sa.BigInteger, nullable=False),
    sa.Column("log", sa.Text, nullable=False),
    sa.Column("kind", sa.Text, nullable=False, server_default="built"),
    sa.Column("parent", sa.Text),  # of a session: the reference of the version its sandbox stood on
    sa.Column("tag", sa.Text),  # NULL: none; it moves to the newest version that claims it
    sa.UniqueConstraint("image_id", "number"),
    _one_of("state", VERSION_STATES),
    _one_of("kind", VERSION_KINDS),
)
sa.Index(
    "uq_image_versions_one_active",
    image_versions.c.image_id,
    unique=True,
    sqlite_where=image_versions.c.active,
    postgresql_where=image_versions.c.active,
)

sa.Index(
    "uq_image_versions_tag",
    image_versions.c.image_id,
    image_versions.c.tag,
    unique=True,
    sqlite_where=image_versions.c.tag.is_not(None),
    postgresql_where=image_versions.c.tag.is_not(None),
)

snapshots = sa.Table(
    "snapshots",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    *_every_row(),
    sa.Column("version_id", sa.ForeignKey("image_versions.id"), nullable=False, index=True),
    sa.Column("vcpus", sa.Integer, nullable=False),
    sa.Column("memory_mib", sa.Integer, nullable=False),
    sa.Column("disk_mib", sa.Integer, nullable=False),
    sa.Column("platform", sa.JSON, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("memory_bytes", sa.BigInteger, nullable=False),
    _one_of("state", SNAPSHOT_STATES),
)

audit_events = sa.Table(
    "audit_events",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    *_every_row(),
    sa.Column("event", sa.Text, nullable=False),
    sa.Column("actor", sa.Text, nullable=False),  # the key that asked, or "host"
    sa.Column("subject", sa.Text, nullable=False),  # what it is about: a sandbox's id, an image's name
    sa.Column("detail", sa.JSON, nullable=False),
    sa.Column("prev_hash", sa.Text, nullable=False, unique=True),  # so that the chain cannot fork
    sa.Column("hash", sa.Text, nullable=False),
)

api_keys = sa.Table(
    "api_keys",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    *_every_row(),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("scopes", sa.JSON, nullable=False),
    sa.Column("hash", sa.Text, nullable=False),  # of the secret, which is nowhere
    sa.Column("expires_at", sa.Double),
    sa.Column("revoked_at", sa.Double),
)

answers = sa.Table(  # given to requests with an Idempotency-Key
    "answers",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    *_every_row(),
    sa.Column("key", sa.Text, nullable=False),
    sa.Column("request", sa.Text, nullable=False),  # a hash of method, path, query and body
    sa.Column("status", sa.Integer, nullable=False),
    sa.Column("media_type", sa.Text, nullable=False),
    sa.Column("body", sa.LargeBinary),  # NULL: it was a stream, or too long to keep
    sa.Column("expires_at", sa.Double, nullable=False, index=True),
    sa.UniqueConstraint("tenant", "key"),
)

pools = sa.Table(
    "pools",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    *_every_row(),
    sa.Column("image", sa.Text, nullable=False),  # a reference; the pool follows it
    sa.Column("vcpus", sa.Integer, nullable=False),
    sa.Column("memory_mib", sa.Integer, nullable=False),
    sa.Column("disk_mib", sa.Integer, nullable=False),
    sa.Column("network", sa.Text, nullable=False),
    sa.Column("min_ready", sa.Integer, nullable=False),
    sa.Column("max_ready", sa.Integer),  # NULL: as min_ready
    sa.Column("target_utilization", sa.Double, nullable=False),
    sa.Column("schedule", sa.Text),  # NULL: always
    sa.Column("origin", sa.Text, nullable=False),
    sa.UniqueConstraint("tenant", "image", "vcpus", "memory_mib", "disk_mib", "network"),
    _one_of("origin", POOL_ORIGINS),
)
