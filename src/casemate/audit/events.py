"""The kinds of event there are, and the bytes that an event's hash covers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

FIRST_PREV_HASH = "0" * 64


class EventKind(StrEnum):
    """Stable names; one is never used for something else."""

    SANDBOX_CREATE = "sandbox.create"  # the intent, before anything is made
    SANDBOX_CREATED = "sandbox.created"
    SANDBOX_SUSPEND = "sandbox.suspend"  # the intent, while it runs still
    SANDBOX_SUSPENDED = "sandbox.suspended"
    SANDBOX_SUSPEND_FAILED = "sandbox.suspend-failed"  # it runs on
    SANDBOX_RESUME = "sandbox.resume"  # the intent
    SANDBOX_RESUMED = "sandbox.resumed"
    SANDBOX_RESUME_FAILED = "sandbox.resume-failed"  # it stays suspended
    SANDBOX_SNAPSHOT = "sandbox.snapshot"  # the intent, while it runs; what it becomes is in the detail
    SANDBOX_FORK = "sandbox.fork"  # the same; each copy has a create of its own
    SANDBOX_TERMINATE = "sandbox.terminate"  # the intent, before the VMM is killed
    SANDBOX_TERMINATED = "sandbox.terminated"  # nothing of it is left, however it came to that
    SANDBOX_KILLED = "sandbox.killed"
    PROTOCOL_VIOLATION = "sandbox.protocol-violation"
    IMAGE_BUILT = "image.built"
    SNAPSHOT_REMOVED = "snapshot.removed"  # what was kept of a sandbox
    SNAPSHOT_EXPORTED = "snapshot.exported"
    SNAPSHOT_IMPORTED = "snapshot.imported"
    POOL_SET = "pool.set"
    POOL_REMOVED = "pool.removed"
    REQUEST_REFUSED = "request.refused"
    DAEMON_STARTED = "daemon.started"  # with what it recovered of an earlier one
    DAEMON_STOPPED = "daemon.stopped"
    AUTH_ACCEPTED = "auth.accepted"
    AUTH_REFUSED = "auth.refused"
    KEY_CREATED = "key.created"
    KEY_REVOKED = "key.revoked"
    TAIL_LOST = "audit.tail-lost"  # events that once were the newest are gone
    ANCHOR_NEW = "audit.anchor-new"  # the anchor file was not there; a lost tail before it could not be seen


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened. *actor* is the key that asked, or ``host``."""

    id: int
    tenant: str
    host_id: str
    created_at: float
    event: str
    actor: str
    subject: str
    detail: Mapping[str, Any]
    prev_hash: str

    def hash(self) -> str:
        """Over the canonical JSON of all fields: sorted keys, no blanks, ASCII."""
        fields = {name: getattr(self, name) for name in self.__slots__}
        text = json.dumps(fields, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()
