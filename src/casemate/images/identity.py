"""Which inodes have been hashed since the host booted, so that a gigabyte is not hashed at every start.

``<root>/<digest>`` holds one line: boot id, device, inode, size, mtime and ctime. Written by the store when
it has hashed an artifact, read by it before it hashes again, deleted when the artifact is removed or broken.
Any write, chmod or replacement changes the ctime, and after a boot nothing is remembered, so the worst a lost
or stale line costs is one more hash.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Identities:
    """What the store below *root* remembers between daemons. Processes may share it: one line, one rename."""

    def __init__(self, root: Path) -> None:
        root.mkdir(parents=True, exist_ok=True)
        self._root = root
        self._boot_id = BOOT_ID.read_text().strip()

    def _line(self, fd: int) -> str:
        s = os.fstat(fd)
        return f"{self._boot_id} {s.st_dev} {s.st_ino} {s.st_size} {s.st_mtime_ns} {s.st_ctime_ns}\n"

    def recognises(self, fd: int, digest: str) -> bool:
        """Whether the open file *fd* is the very inode that was hashed to *digest* since the boot."""
        try:
            return (self._root / digest).read_text() == self._line(fd)
        except (FileNotFoundError, UnicodeDecodeError):
            return False

    def remember(self, fd: int, digest: str) -> None:
        temp = self._root / f".{secrets.token_hex(8)}"
        try:
            temp.write_text(self._line(fd))
            temp.rename(self._root / digest)
        except OSError:  # a full disk must not fail a check that has succeeded; it only costs the next hash
            with contextlib.suppress(OSError):
                temp.unlink(missing_ok=True)

    def forget(self, digest: str) -> None:
        (self._root / digest).unlink(missing_ok=True)
