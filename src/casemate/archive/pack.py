"""A folder as a stream of tar. What changes meanwhile changes nothing about the stream's form."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Generator, Iterator

from casemate.archive.headers import BLOCK, Member, written
from casemate.errors import ArchiveRefused

PIECE_BYTES = 65_536
MAX_DEPTH = 128
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_ANOTHER_BY_NOW = (errno.ENOENT, errno.ELOOP, errno.ENOTDIR)
_END = bytes(2 * BLOCK)


def pack(path: str) -> Iterator[bytes]:
    """The folder at *path* and all below it; the folder itself is the member ``.``.

    Links are not followed, except by *path* itself. Neither sockets, pipes and devices are in it, nor what
    vanished meanwhile. Raises OSError, the first at once; ArchiveRefused over 128 levels.
    """
    root = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    return _packed(root)


def _packed(root: int) -> Iterator[bytes]:
    levels: list[tuple[int, str, Iterator[str]]] = [(root, "", iter(()))]
    try:
        yield written(_member(".", "dir", os.fstat(root)))
        levels[0] = (root, "", iter(sorted(os.listdir(root))))
        while levels:
            folder, above, names = levels[-1]
            name = next(names, None)
            if name is None:
                os.close(folder)
                levels.pop()
                continue
            below = yield from _one(folder, name, above + name)
            if below is not None:
                levels.append((below, f"{above}{name}/", iter(sorted(os.listdir(below)))))
                if len(levels) > MAX_DEPTH:
                    raise ArchiveRefused(f"{above[:200]!r} is over {MAX_DEPTH} folders deep")
        yield _END
    finally:
        for folder, _, _ in levels:
            os.close(folder)


def _one(folder: int, name: str, path: str) -> Generator[bytes, None, int | None]:
    """One member; a folder's descriptor is returned, to go on below it."""
    try:
        found = os.stat(name, dir_fd=folder, follow_symlinks=False)
        kind = stat.S_IFMT(found.st_mode)
        if kind == stat.S_IFLNK:
            yield written(_member(path, "symlink", found, os.readlink(name, dir_fd=folder)))
            return None
        if kind not in (stat.S_IFREG, stat.S_IFDIR):
            return None
        descriptor = os.open(name, _FOLDER if kind == stat.S_IFDIR else _FILE, dir_fd=folder)
    except OSError as error:
        if error.errno in _ANOTHER_BY_NOW:
            return None
        raise
    if kind == stat.S_IFDIR:
        try:
            yield written(_member(path, "dir", found))
        except GeneratorExit:
            os.close(descriptor)
            raise
        return descriptor
    try:
        found = os.fstat(descriptor)
        if stat.S_ISREG(found.st_mode):  # it may be another one by now
            yield written(_member(path, "file", found))
            yield from _content(descriptor, found.st_size)
    finally:
        os.close(descriptor)
    return None


def _content(descriptor: int, size: int) -> Iterator[bytes]:
    """Exactly *size* bytes, whatever becomes of the file, and the padding."""
    left = size
    while left:
        piece = os.read(descriptor, min(PIECE_BYTES, left)) or bytes(min(PIECE_BYTES, left))
        left -= len(piece)
        yield piece
    if size % BLOCK:
        yield bytes(-size % BLOCK)


def _member(path: str, kind: str, found: os.stat_result, target: str = "") -> Member:
    size = found.st_size if kind == "file" else 0
    return Member(path, kind, stat.S_IMODE(found.st_mode), size, found.st_mtime_ns, target)  # type: ignore[arg-type]
