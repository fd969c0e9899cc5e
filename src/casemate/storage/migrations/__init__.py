"""Alembic's folder. Run by ``storage.open`` only, on the connection it hands over."""
