"""The index of names and history: SQLite behind SQLAlchemy Core. What is true stands in the folders."""

from casemate.storage import images, sandboxes
from casemate.storage.database import Database, open
from casemate.storage.images import ImageRow, SnapshotRow, VersionRow, VersionState
from casemate.storage.sandboxes import SandboxRow
from casemate.storage.schema import audit_events

__all__ = [
    "Database",
    "ImageRow",
    "SandboxRow",
    "SnapshotRow",
    "VersionRow",
    "VersionState",
    "audit_events",
    "images",
    "open",
    "sandboxes",
]
