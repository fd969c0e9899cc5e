"""Pools of ready sandboxes.

Revision ID: 0003
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "pools",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("host_id", sa.Text, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("updated_at", sa.Double, nullable=False),
        sa.Column("revision", sa.Integer, nullable=False),
        sa.Column("image", sa.Text, nullable=False),
        sa.Column("vcpus", sa.Integer, nullable=False),
        sa.Column("memory_mib", sa.Integer, nullable=False),
        sa.Column("disk_mib", sa.Integer, nullable=False),
        sa.Column("network", sa.Text, nullable=False),
        sa.Column("min_ready", sa.Integer, nullable=False),
        sa.Column("max_ready", sa.Integer),  # NULL: as min_ready
        sa.Column("target_utilization", sa.Double, nullable=False),
        sa.Column("schedule", sa.Text),
        sa.Column("origin", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_pools")),
        sa.UniqueConstraint(
            "tenant",
            "image",
            "vcpus",
            "memory_mib",
            "disk_mib",
            "network",
            name=op.f("uq_pools_tenant_image_vcpus_memory_mib_disk_mib_network"),
        ),
        sa.CheckConstraint("origin IN ('api', 'config')", name=op.f("ck_pools_origin")),
    )
