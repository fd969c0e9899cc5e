"""The first schema: sandboxes, images with versions and snapshots, audit events.

Revision ID: 0001
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

SANDBOX_STATES = "'ready', 'pending', 'running', 'suspending', 'suspended', 'resuming', 'terminating', 'terminated'"


def _every_row() -> list[sa.Column[object]]:
    return [
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("host_id", sa.Text, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("updated_at", sa.Double, nullable=False),
        sa.Column("revision", sa.Integer, nullable=False),
    ]


def upgrade() -> None:
    _sandboxes()
    _images()
    _audit()


def _sandboxes() -> None:
    op.create_table(
        "sandboxes",
        sa.Column("id", sa.Text, nullable=False),
        *_every_row(),
        sa.Column("name", sa.Text),
        sa.Column("image", sa.Text, nullable=False),
        sa.Column("snapshot_id", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("info", sa.JSON, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_sandboxes")),
        sa.CheckConstraint(f"state IN ({SANDBOX_STATES})", name=op.f("ck_sandboxes_state")),
    )
    alive = sa.text("state != 'terminated'")
    op.create_index(
        "uq_sandboxes_live_name",
        "sandboxes",
        ["tenant", "name"],
        unique=True,
        sqlite_where=alive,
        postgresql_where=alive,
    )
    op.create_index("ix_sandboxes_tenant_state", "sandboxes", ["tenant", "state"])


def _images() -> None:
    op.create_table(
        "images",
        sa.Column("id", sa.Integer, nullable=False),
        *_every_row(),
        sa.Column("name", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_images")),
        sa.UniqueConstraint("tenant", "name", name=op.f("uq_images_tenant_name")),
    )
    op.create_table(
        "image_versions",
        sa.Column("id", sa.Integer, nullable=False),
        *_every_row(),
        sa.Column("image_id", sa.Integer, nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("config", sa.JSON, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("active", sa.Boolean, nullable=False),
        sa.Column("artifacts", sa.JSON, nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("log", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_image_versions")),
        sa.ForeignKeyConstraint(["image_id"], ["images.id"], name=op.f("fk_image_versions_image_id")),
        sa.UniqueConstraint("image_id", "number", name=op.f("uq_image_versions_image_id_number")),
        sa.CheckConstraint("state IN ('pending', 'building', 'ready', 'failed')", name=op.f("ck_image_versions_state")),
    )
    op.create_index(
        "uq_image_versions_one_active",
        "image_versions",
        ["image_id"],
        unique=True,
        sqlite_where=sa.text("active"),
        postgresql_where=sa.text("active"),
    )
    op.create_table(
        "snapshots",
        sa.Column("id", sa.Text, nullable=False),
        *_every_row(),
        sa.Column("version_id", sa.Integer, nullable=False),
        sa.Column("vcpus", sa.Integer, nullable=False),
        sa.Column("memory_mib", sa.Integer, nullable=False),
        sa.Column("disk_mib", sa.Integer, nullable=False),
        sa.Column("platform", sa.JSON, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("memory_bytes", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_snapshots")),
        sa.ForeignKeyConstraint(["version_id"], ["image_versions.id"], name=op.f("fk_snapshots_version_id")),
        sa.CheckConstraint("state IN ('building', 'ready', 'failed')", name=op.f("ck_snapshots_state")),
    )
    op.create_index("ix_snapshots_version_id", "snapshots", ["version_id"])


def _audit() -> None:
    op.create_table(
        "audit_events",
        sa.Column("id", sa.Integer, nullable=False),
        *_every_row(),
        sa.Column("event", sa.Text, nullable=False),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("subject", sa.Text, nullable=False),
        sa.Column("detail", sa.JSON, nullable=False),
        sa.Column("prev_hash", sa.Text, nullable=False),
        sa.Column("hash", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit_events")),
        sa.UniqueConstraint("prev_hash", name=op.f("uq_audit_events_prev_hash")),
    )
    if op.get_bind().dialect.name == "sqlite":
        for verb in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER audit_events_no_{verb.lower()} BEFORE {verb} ON audit_events "
                "BEGIN SELECT RAISE(ABORT, 'audit events are append-only'); END"
            )
