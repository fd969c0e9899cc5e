"""Which files below a folder have changed, by inotify: one question to the kernel where none has.

Not seen: what happens in folders whose name begins with a dot or is in PASSED_OVER, in the system's own, in those
beyond FOLDERS_AT_MOST, behind symbolic links, and through memory maps. A file that was moved here is `created`, also
when it replaced another.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import struct
import termios
from collections import deque

FOLDERS_AT_MOST = 128  # to begin with one takes an emulated guest about 1 ms, and all of the agent waits for it
ENTRIES_AT_MOST = 2000  # looked at in one go
EVENTS_AT_MOST = 4000  # of one cell
LISTED_AT_MOST = 150
LISTED_BYTES = 8000  # of paths, as JSON
PATH_AT_MOST = 4096  # what the host takes; in a folder at the kernel's limit a file's is longer
UNKNOWN = -1
PASSED_OVER = frozenset({"__pycache__", "node_modules"})
SYSTEM = frozenset(
    {"/bin", "/boot", "/dev", "/etc", "/lib", "/lib64", "/proc", "/run", "/sbin", "/sys", "/usr", "/var"}
)
# Source: linux/inotify.h
_MODIFY, _MOVED_FROM, _MOVED_TO, _CREATE, _DELETE = 0x2, 0x40, 0x80, 0x100, 0x200
_OVERFLOW, _IGNORED, _ONLYDIR, _DONT_FOLLOW, _ISDIR = 0x4000, 0x8000, 0x0100_0000, 0x0200_0000, 0x4000_0000
_WATCHED = _MODIFY | _MOVED_FROM | _MOVED_TO | _CREATE | _DELETE | _ONLYDIR
_EVENT = struct.Struct("iIII")
_READ_BYTES = 65_536

_libc = ctypes.CDLL(None, use_errno=True)


class FolderWatch:
    """Owns one inotify descriptor. Made and asked with the rights of whose folder it is, by `rights_of`."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._fd = -1
        self._paths: dict[int, str] = {}  # by watch
        self._begin()

    def has_news(self) -> bool:
        """Whether it is worth the asking."""
        return self._fd < 0 or _readable_bytes(self._fd) > 0

    def changes(self) -> tuple[list[dict[str, str]], int]:
        """What has changed since it was asked last: ``{"path", "change"}``, and how many more; UNKNOWN: some more."""
        if self._fd < 0:
            return [], UNKNOWN
        found: dict[str, tuple[bool, bool]] = {}  # path → whether it was there before, whether it is now
        if not self._read(found):
            self.close()
            self._begin()
            return _listed(found, UNKNOWN)
        return _listed(found, 0)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self._paths.clear()

    def _begin(self) -> None:
        self._fd = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd >= 0 and not self._add(self._folder, 0):
            self.close()
        elif self._fd >= 0:
            self._watch_below(self._folder, None)

    def _add(self, folder: str, flags: int) -> bool:
        if len(self._paths) >= FOLDERS_AT_MOST:
            return False
        number: int = _libc.inotify_add_watch(self._fd, os.fsencode(folder), _WATCHED | flags)
        if number >= 0:
            self._paths[number] = folder
        return number >= 0

    def _watch_below(self, folder: str, found: dict[str, tuple[bool, bool]] | None) -> bool:
        """Watch the folders below *folder*, which is; its files are new, if *found* is given. False: too many."""
        coming, left = deque([folder]), ENTRIES_AT_MOST
        while coming:
            try:
                with os.scandir(coming.popleft()) as entries:
                    for entry in entries:
                        left -= 1
                        if left < 0:
                            return False
                        if not entry.is_dir(follow_symlinks=False):
                            if found is not None:
                                found[entry.path] = (False, True)
                        elif _is_looked_into(entry.path) and self._add(entry.path, _DONT_FOLLOW):
                            coming.append(entry.path)
            except OSError:
                continue  # it is gone again, or not the user's to read
        return True

    def _read(self, found: dict[str, tuple[bool, bool]]) -> bool:
        """False: there is more than can be told."""
        left = EVENTS_AT_MOST
        while True:
            try:
                events = os.read(self._fd, _READ_BYTES)
            except BlockingIOError:
                return True
            at = 0
            while at < len(events):
                number, mask, _, length = _EVENT.unpack_from(events, at)
                at += _EVENT.size
                name = events[at : at + length].rstrip(b"\0")
                at += length
                left -= 1
                if left < 0 or mask & _OVERFLOW or not self._take(number, mask, os.fsdecode(name), found):
                    return False

    def _take(self, number: int, mask: int, name: str, found: dict[str, tuple[bool, bool]]) -> bool:
        folder = self._paths.get(number)
        if mask & _IGNORED:
            self._paths.pop(number, None)
        elif folder is not None and name:
            path = os.path.join(folder, name)
            if mask & _ISDIR:
                return self._take_folder(mask, path, found)
            there = not mask & (_DELETE | _MOVED_FROM)
            before, _ = found.get(path, (not mask & (_CREATE | _MOVED_TO), False))
            found[path] = (before, there)
        return True

    def _take_folder(self, mask: int, path: str, found: dict[str, tuple[bool, bool]]) -> bool:
        if mask & (_MOVED_FROM | _DELETE):
            inside = path + "/"
            for number, known in tuple(self._paths.items()):
                if known == path or known.startswith(inside):
                    _libc.inotify_rm_watch(self._fd, number)
                    del self._paths[number]
        elif mask & (_CREATE | _MOVED_TO) and _is_looked_into(path) and self._add(path, _DONT_FOLLOW):
            return self._watch_below(path, found)
        return True


def _is_looked_into(path: str) -> bool:
    name = os.path.basename(path)
    return not name.startswith(".") and name not in PASSED_OVER and path not in SYSTEM


def _listed(found: dict[str, tuple[bool, bool]], cut: int) -> tuple[list[dict[str, str]], int]:
    listed: list[dict[str, str]] = []
    room, more = LISTED_BYTES, 0
    for path, (before, now) in found.items():
        if not before and not now:
            continue
        shown = os.fsencode(path).decode("utf-8", "replace")
        is_long = len(shown) > PATH_AT_MOST
        room -= 0 if is_long else len(json.dumps(shown))
        if is_long or room < 0 or len(listed) >= LISTED_AT_MOST:
            more += 1
        else:
            change = ("modified" if now else "deleted") if before else "created"
            listed.append({"path": shown, "change": change})
    return listed, cut or more


def _readable_bytes(fd: int) -> int:
    return int(struct.unpack("i", fcntl.ioctl(fd, termios.FIONREAD, b"\0\0\0\0"))[0])
