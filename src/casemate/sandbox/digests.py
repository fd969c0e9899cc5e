"""The digest of a machine's memory, and of its disk: of a large file that is mostly holes, quickly.

A tree of one level: the sha256 over the size and, for each chunk of 1 MiB that is not all zeros, its number and its
own sha256. So chunks can be hashed side by side, and where a file system keeps its holes does not matter. Of a copy
with changes only the changed chunks are hashed: to compare two chunks costs a quarter of a sha256.
"""

from __future__ import annotations

import errno
import hashlib
import os
import struct
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

CHUNK_BYTES = 1 << 20
THREADS = 2
KNOWN_BASES = 16  # 16 KiB of digests each
_ZEROS = bytes(CHUNK_BYTES)
_LEAF = struct.Struct("<Q32s")


@dataclass(frozen=True, slots=True)
class Base:
    """An open file that another one is a copy of, with changes; of its chunks the digests, as far as *known*."""

    descriptor: int
    known: dict[int, bytes]


class Bases:
    """What is known of the files that the last copies were made of. Such a file is never written again."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, ...], dict[int, bytes]] = {}
        self._changing = threading.Lock()

    @contextmanager
    def open(self, path: Path) -> Iterator[Base | None]:
        """For a block; None where it is gone."""
        try:
            descriptor = _open(path)
        except FileNotFoundError:
            yield None
            return
        try:
            yield Base(descriptor, self._of(os.fstat(descriptor)))
        finally:
            os.close(descriptor)

    def _of(self, stat: os.stat_result) -> dict[int, bytes]:
        identity = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
        with self._changing:
            known = self._known[identity] = self._known.pop(identity, {})
            while len(self._known) > KNOWN_BASES:
                del self._known[next(iter(self._known))]
        return known


def digest_of_memory(path: Path, base: Base | None = None) -> str:
    """In hexadecimal; *base*: what it is a copy of. Through no link. Blocks. Raises OSError."""
    descriptor = _open(path)
    try:
        return digest_of_sparse(descriptor, base)
    finally:
        os.close(descriptor)


def digest_of_sparse(descriptor: int, base: Base | None = None) -> str:
    """The same of an open file."""
    size, local = os.fstat(descriptor).st_size, threading.local()
    if base is not None and os.fstat(base.descriptor).st_size != size:
        base = None

    def leaf(number: int) -> bytes:
        if not hasattr(local, "chunk"):
            local.chunk, local.other = bytearray(CHUNK_BYTES), bytearray(CHUNK_BYTES)
        at, count = number * CHUNK_BYTES, min(CHUNK_BYTES, size - number * CHUNK_BYTES)
        chunk = _filled(local.chunk, descriptor, count, at)
        if chunk == _ZEROS[:count]:
            return b""
        if base is None or chunk != _filled(local.other, base.descriptor, count, at):
            return _LEAF.pack(number, hashlib.sha256(chunk).digest())
        if number not in base.known:
            base.known[number] = hashlib.sha256(chunk).digest()
        return _LEAF.pack(number, base.known[number])

    tree = hashlib.sha256(size.to_bytes(8, "little"))
    with ThreadPoolExecutor(THREADS) as threads:
        for piece in threads.map(leaf, chunks_with_data(descriptor, size, CHUNK_BYTES)):
            tree.update(piece)
    return tree.hexdigest()


def _open(path: Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)


def _filled(buffer: bytearray, descriptor: int, count: int, at: int) -> bytearray:
    """*count* bytes from there on. No view of them: two views are compared one element after the other."""
    done = 0
    with memoryview(buffer) as view:
        while done < count:
            got = os.preadv(descriptor, [view[done:count]], at + done)
            if got == 0:
                raise OSError(errno.EIO, "it became shorter while it was read")
            done += got
    return buffer if count == len(buffer) else buffer[:count]


def chunks_with_data(descriptor: int, size: int, chunk_bytes: int) -> Iterator[int]:
    """The numbers of an open file's chunks that are not all hole, in order, none twice. Blocks. Raises OSError."""
    number = 0
    while number * chunk_bytes < size:
        try:
            start = os.lseek(descriptor, number * chunk_bytes, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return  # a hole to the end
        end = os.lseek(descriptor, start, os.SEEK_HOLE)
        number = -(-end // chunk_bytes)
        yield from range(start // chunk_bytes, number)
