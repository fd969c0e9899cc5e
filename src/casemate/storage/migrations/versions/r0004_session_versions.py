"""Versions made of a living sandbox: their kind, their parent, their tag.

Revision ID: 0004
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # By hand: a CHECK within ADD COLUMN keeps SQLite from copying a table that others refer to
    op.execute(
        "ALTER TABLE image_versions ADD COLUMN kind TEXT NOT NULL DEFAULT 'built' "
        "CONSTRAINT ck_image_versions_kind CHECK (kind IN ('built', 'session'))"
    )
    op.add_column("image_versions", sa.Column("parent", sa.Text))
    op.add_column("image_versions", sa.Column("tag", sa.Text))
    tagged = sa.text("tag IS NOT NULL")
    op.create_index(
        "uq_image_versions_tag",
        "image_versions",
        ["image_id", "tag"],
        unique=True,
        sqlite_where=tagged,
        postgresql_where=tagged,
    )
