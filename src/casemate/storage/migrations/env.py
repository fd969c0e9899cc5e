"""What alembic runs to migrate: no configuration file, the caller's connection."""

from alembic import context

from casemate.storage.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,  # SQLite cannot alter most of a table
)
with context.begin_transaction():
    context.run_migrations()
