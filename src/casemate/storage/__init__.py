"""The index of names and history: SQLite behind SQLAlchemy Core. What is true stands in the folders."""

from casemate.storage import answers, images, keys, pools, sandboxes
from casemate.storage.answers import AnswerRow
from casemate.storage.database import Database, open
from casemate.storage.images import ImageRow, SnapshotRow, VersionRow, VersionState
from casemate.storage.keys import KeyRow
from casemate.storage.pools import PoolRow
from casemate.storage.sandboxes import SandboxRow
from casemate.storage.schema import audit_events

__all__ = [
    "AnswerRow",
    "Database",
    "ImageRow",
    "KeyRow",
    "PoolRow",
    "SandboxRow",
    "SnapshotRow",
    "VersionRow",
    "VersionState",
    "answers",
    "audit_events",
    "images",
    "keys",
    "open",
    "pools",
    "sandboxes",
]
