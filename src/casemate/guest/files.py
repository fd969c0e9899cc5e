"""Files with the rights of one of the guest's users.

The agent is root and has one thread: it takes the user's effective ids around each batch of system calls, so
the kernel checks every path as it would for that user. What is opened is never waited for (O_NONBLOCK: a
user may put a FIFO where a file was) and has to be a regular file.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from casemate.errors import FileRefused
from casemate.guest.accounts import Account
from casemate.guest.zygote import Identity

_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_PERMISSIONS = 0o7777
_MESSAGE_BYTES = 32_000  # the last entry may take as much again
_ENTRY_BYTES = 200
_JSON_GROWTH = 12  # a character beyond the first 65,536 is written as twelve
_LOOK_EVERY_BYTES = 4 << 20
_MEMORY_KEPT_BYTES = 16 << 20  # half of what cgroups.py keeps from user processes


@contextmanager
def rights_of(account: Account | Identity | None) -> Iterator[None]:
    """Act as *account* inside the block; None or root: as we are. OSErrors in it become FileRefused.

    Nothing may be awaited inside: these are the rights of the whole agent.
    """
    try:
        if account is None or account.uid == 0:
            yield
            return
        os.setgroups(account.groups)
        os.setegid(account.gid)
        os.seteuid(account.uid)
        try:
            yield
        finally:
            os.seteuid(0)
            os.setegid(0)
            os.setgroups([])
    except OSError as error:
        raise refusal(error) from error


def refusal(error: OSError) -> FileRefused:
    name = errno.errorcode.get(error.errno or 0, "EIO")
    evidence = {"errno": name}
    if isinstance(error.filename, str):
        evidence["path"] = error.filename
    message = f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror)
    return FileRefused(message, evidence=evidence)


def open_to_read(path: str) -> tuple[int, os.stat_result]:
    """A regular file's descriptor. Raises OSError."""
    fd = os.open(path, _READ)
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode):
        os.close(fd)
        number = errno.EISDIR if stat.S_ISDIR(found.st_mode) else errno.EINVAL
        raise OSError(number, os.strerror(number), path)
    return fd, found


class Replacement:
    """A file that is being written beside its place; nobody sees it there before it is whole. Owns both."""

    def __init__(self, path: str, mode: int | None, make_parents: bool) -> None:
        """Raises OSError."""
        folder, name = os.path.split(path)
        if not name or name in (".", ".."):
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        if make_parents and folder:
            os.makedirs(folder, exist_ok=True)
        self._path = path
        self._mode = self._mode_of_old(mode)
        self._temporary = os.path.join(folder, f".{name[:200]}.{os.urandom(8).hex()}")
        self._fd = os.open(self._temporary, _CREATE, 0o600)
        self._memory = Memory()
        self.written = 0

    def _mode_of_old(self, mode: int | None) -> int:
        try:
            old = os.lstat(self._path)
        except FileNotFoundError:
            return 0o644 if mode is None else mode
        if stat.S_ISDIR(old.st_mode):
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), self._path)
        if mode is None:
            return old.st_mode & 0o777 if stat.S_ISREG(old.st_mode) else 0o644
        return mode

    def write(self, data: bytes) -> None:
        """Raises OSError. The rights were checked at the opening."""
        self._memory.take(len(data))
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]
        self.written += len(data)

    def commit(self) -> None:
        """Put it into its place. Raises OSError; it is then to be given up."""
        os.fchmod(self._fd, self._mode & _PERMISSIONS)
        os.rename(self._temporary, self._path)
        os.close(self._fd)
        self._fd = -1

    def give_up(self) -> None:
        """Remove what was written, if it was not committed. Raises OSError."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            os.unlink(self._temporary)


def entry(path: str, name: str | None = None, follow: bool = False) -> dict[str, Any]:
    """What stat says of *path*, links not followed unless *follow*. Raises OSError."""
    shown = name if name is not None else os.path.basename(path.rstrip("/")) or "/"
    return _entry(path, shown, os.stat(path, follow_symlinks=follow))


class Memory:
    """A file on tmpfs is memory, and what the agent writes counts against nobody's limit: so it looks by itself."""

    def __init__(self) -> None:
        self._unlooked = 0

    def take(self, count: int) -> None:
        """Say that so many bytes will be written. Raises OSError (ENOMEM) where there is no room for more."""
        self._unlooked += count
        if self._unlooked < _LOOK_EVERY_BYTES:
            return
        self._unlooked = 0
        with open("/proc/meminfo") as file:
            available = next(int(line.split()[1]) << 10 for line in file if line.startswith("MemAvailable"))
        if available < _MEMORY_KEPT_BYTES:
            raise OSError(errno.ENOMEM, "the guest's memory is full")


def entries(path: str) -> Iterator[dict[str, Any]]:
    """What is in a folder; what vanishes meanwhile is left out. Raises OSError, the first time at once."""
    found = os.scandir(path)
    return _entries(found)


def _entries(found: Iterator[os.DirEntry[str]]) -> Iterator[dict[str, Any]]:
    for item in found:
        try:
            status = item.stat(follow_symlinks=False)
        except FileNotFoundError:
            continue
        yield _entry(item.path, item.name, status)


def some(found: Iterator[dict[str, Any]]) -> list[dict[str, Any]]:
    """The next entries, as many as surely fit into one message; empty at the end."""
    taken: list[dict[str, Any]] = []
    room = _MESSAGE_BYTES
    while room > 0:
        item = next(found, None)
        if item is None:
            break
        taken.append(item)
        room -= _ENTRY_BYTES + _JSON_GROWTH * (len(item["name"]) + len(item["path"]))
    return taken


def remove(path: str, recursive: bool) -> None:
    """Raises OSError. A link is removed, never what it points to."""
    if not stat.S_ISDIR(os.lstat(path).st_mode):
        os.unlink(path)
    elif recursive:
        shutil.rmtree(path)
    else:
        os.rmdir(path)


def _entry(path: str, name: str, status: os.stat_result) -> dict[str, Any]:
    kind = stat.S_IFMT(status.st_mode)
    return {
        "name": _shown(name),
        "path": _shown(path),
        "type": {stat.S_IFREG: "file", stat.S_IFDIR: "dir", stat.S_IFLNK: "symlink"}.get(kind, "other"),
        "size": status.st_size,
        "mode": stat.S_IMODE(status.st_mode),
        "uid": status.st_uid,
        "gid": status.st_gid,
        "mtime_ns": status.st_mtime_ns,
    }


def _shown(name: str) -> str:
    """A file's name may be any bytes; JSON text may not."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
