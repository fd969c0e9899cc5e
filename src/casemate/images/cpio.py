"""Archives in the `newc` format, the kernel's initramfs: the same entries always give the same bytes.

Source: Linux Documentation/driver-api/early-userspace/buffer-format.rst
"""

from __future__ import annotations

import stat
from collections.abc import Iterable
from dataclasses import dataclass

MAGIC = "070701"
TRAILER = "TRAILER!!!"
MAX_FILE_BYTES = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of the archive; *mode* has the type bits. A symlink's target is its content."""

    path: str
    mode: int
    content: bytes = b""
    device: tuple[int, int] = (0, 0)


def folder(path: str, mode: int = 0o755) -> Entry:
    return Entry(path, stat.S_IFDIR | mode)


def file(path: str, content: bytes, mode: int = 0o644) -> Entry:
    return Entry(path, stat.S_IFREG | mode, content)


def symlink(path: str, target: str) -> Entry:
    return Entry(path, stat.S_IFLNK | 0o777, target.encode())


def character_device(path: str, major: int, minor: int, mode: int = 0o600) -> Entry:
    return Entry(path, stat.S_IFCHR | mode, device=(major, minor))


def archive(entries: Iterable[Entry]) -> bytes:
    """The archive of *entries*, in their order, with the folders they lie in added in front of them.

    Owner root, all times 0. Raises ValueError for a path that is absolute, goes up or comes twice.
    """
    out = bytearray()
    seen: set[str] = set()
    for inode, entry in enumerate(_with_folders(entries), start=1):
        _check(entry, seen)
        seen.add(entry.path)
        out += _record(inode, entry)
    out += _record(0, Entry(TRAILER, 0))
    return bytes(out + b"\0" * (-len(out) % 512))


def _with_folders(entries: Iterable[Entry]) -> Iterable[Entry]:
    known: set[str] = set()
    for entry in entries:
        parts = entry.path.split("/")
        for depth in range(1, len(parts)):
            parent = "/".join(parts[:depth])
            if parent not in known:
                known.add(parent)
                yield folder(parent)
        known.add(entry.path)
        yield entry


def _check(entry: Entry, seen: set[str]) -> None:
    parts = entry.path.split("/")
    if not entry.path or "\0" in entry.path or any(part in ("", ".", "..") for part in parts):
        raise ValueError(f"{entry.path!r} is no path inside an archive")
    if entry.path in seen or entry.path == TRAILER:
        raise ValueError(f"{entry.path!r} comes twice")
    if len(entry.content) > MAX_FILE_BYTES:
        raise ValueError(f"{entry.path!r} is too large")


def _record(inode: int, entry: Entry) -> bytes:
    name = entry.path.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    # ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
    fields = (inode, entry.mode, 0, 0, links, 0, len(entry.content), 0, 0, *entry.device, len(name), 0)
    head = MAGIC.encode() + b"".join(b"%08X" % field for field in fields) + name
    return _padded(head) + _padded(entry.content)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)
