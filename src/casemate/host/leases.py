"""Uids for VMMs, leased by flock: two daemons of one host, with whatever homes, never have one in common.

One empty file per uid, in a folder that only root can write. The kernel gives a lease back when its holder ends,
however it ends. The daemon's own uid is leased shared: daemons may have it in common, no machine may have it.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Collection
from pathlib import Path

FOLDER = Path("/run/casemate/uids")


class Leases:
    """Made by a launcher that is root."""

    def __init__(self, uid_base: int, uid_count: int, folder: Path = FOLDER) -> None:
        self._uids = range(uid_base + 1, uid_base + uid_count)  # the base itself is the daemon's
        self._next = 0
        self._folder = folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._own = self._lock(uid_base, fcntl.LOCK_SH)

    def take(self, in_use: Collection[int]) -> tuple[int, int] | None:
        """A uid and the descriptor that holds its lease; None when all are taken. A uid returns as late as possible."""
        for _ in range(len(self._uids)):
            uid = self._uids[self._next % len(self._uids)]
            self._next += 1
            if uid not in in_use and (held := self._lock(uid, fcntl.LOCK_EX)) is not None:
                return uid, held
        return None

    def _lock(self, uid: int, kind: int) -> int | None:
        descriptor = os.open(self._folder / str(uid), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        return descriptor
