"""The digest of a machine's memory, and of its disk: of a large file that is mostly holes, quickly.

A tree of one level: the sha256 over the size and, for each chunk of 1 MiB that is not all zeros, its number and its
own sha256. So chunks can be hashed side by side, and where a file system keeps its holes does not matter.
"""

from __future__ import annotations

import errno
import hashlib
import os
import struct
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

CHUNK_BYTES = 1 << 20
THREADS = 2
_ZEROS = bytes(CHUNK_BYTES)
_LEAF = struct.Struct("<Q32s")


def digest_of_memory(path: Path) -> str:
    """In hexadecimal. Through no link. Blocks. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        return digest_of_sparse(descriptor)
    finally:
        os.close(descriptor)


def digest_of_sparse(descriptor: int) -> str:
    """The same of an open file."""
    size, local = os.fstat(descriptor).st_size, threading.local()

    def leaf(number: int) -> bytes:
        if not hasattr(local, "chunk"):
            local.chunk = memoryview(bytearray(CHUNK_BYTES))
        at = number * CHUNK_BYTES
        chunk = local.chunk[: _fill(descriptor, local.chunk[: min(CHUNK_BYTES, size - at)], at)]
        if chunk == _ZEROS[: len(chunk)]:
            return b""
        return _LEAF.pack(number, hashlib.sha256(chunk).digest())

    tree = hashlib.sha256(size.to_bytes(8, "little"))
    with ThreadPoolExecutor(THREADS) as threads:
        for piece in threads.map(leaf, chunks_with_data(descriptor, size, CHUNK_BYTES)):
            tree.update(piece)
    return tree.hexdigest()


def _fill(descriptor: int, chunk: memoryview, at: int) -> int:
    done = 0
    while done < len(chunk):
        got = os.preadv(descriptor, [chunk[done:]], at + done)
        if got == 0:
            raise OSError(errno.EIO, "it became shorter while it was read")
        done += got
    return done


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
