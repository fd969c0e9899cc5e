"""Which jailer may run as root: one that root approved, by a mark on its file that nobody else can make.

The daemon, which keeps the file, is not trusted with the answer. Root writes the digest into an extended attribute
``trusted.*`` when it installs the file (``approve``); the launcher copies what it is given into memory of its own,
compares, and runs that copy. Source: xattr(7)
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import os
from pathlib import Path

MARK = "trusted.casemate.jailer"
MAX_BYTES = 64 << 20
MFD_EXEC = 0x10  # Source: linux/memfd.h, since 6.3
FUSE = 0x65735546  # Source: linux/magic.h
SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


_libc = ctypes.CDLL(None, use_errno=True)


class NotApproved(ValueError):
    """A program that is not to run as root."""

    hint = "as root: casemate vmm install firecracker"


def approve(file: Path, sha256: str) -> None:
    """As root: what has this digest, and is in *file*, may be run as root as its jailer. Raises OSError."""
    descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        os.setxattr(descriptor, MARK, sha256.encode())
    finally:
        os.close(descriptor)


class Approved:
    """What was approved, as copies that nobody can change."""

    def __init__(self) -> None:
        self._copies: dict[tuple[int, ...], int] = {}

    def copy(self, descriptor: int) -> int:
        """A sealed copy in memory of the file behind *descriptor*; stays ours. Raises NotApproved, OSError."""
        if _kind(descriptor) == FUSE:
            raise NotApproved("a file system that a process makes up can make up root's mark as well")
        stat = os.fstat(descriptor)
        key = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
        if key not in self._copies:
            made = _copy(descriptor)
            try:
                digest = _digest(made)
                if _mark(descriptor) != digest.encode():
                    raise NotApproved(f"root has not approved this jailer (sha256 {digest})")
            except BaseException:
                os.close(made)
                raise
            for old in self._copies.values():  # one build is in use at a time, or two
                os.close(old)
            self._copies = {key: made}
        return self._copies[key]


def _kind(descriptor: int) -> int:
    """Of the file system behind it. Source: statfs(2), whose first field this is."""
    told = (ctypes.c_long * 32)()
    if _libc.fstatfs(descriptor, told) != 0:
        raise OSError(ctypes.get_errno(), "fstatfs")
    return int(told[0])


def _mark(descriptor: int) -> bytes | None:
    try:
        return os.getxattr(descriptor, MARK)
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.ENOTSUP):
            return None
        raise


def _copy(descriptor: int) -> int:
    try:
        made = os.memfd_create("jailer", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING | MFD_EXEC)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a kernel that knows nothing of that; there all can be executed
            raise
        made = os.memfd_create("jailer", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    place = 0
    while place <= MAX_BYTES and (piece := os.pread(descriptor, 1 << 20, place)):
        place += os.write(made, piece)
    fcntl.fcntl(made, fcntl.F_ADD_SEALS, SEALS)
    return made


def _digest(descriptor: int) -> str:
    with open(descriptor, "rb", closefd=False) as file:
        file.seek(0)
        return hashlib.file_digest(file, "sha256").hexdigest()
