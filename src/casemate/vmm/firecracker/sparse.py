"""Memory that a VMM wrote in full, zeros and all, as a sparse file."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from casemate.errors import HostError

BLOCK_BYTES = 65_536
FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE = 1, 2  # Source: linux/falloc.h
_libc = ctypes.CDLL(None, use_errno=True)


def dig_holes(path: Path) -> int:
    """Give back the blocks of *path* that have only zeros; how many bytes those are. Blocks. Raises HostError.

    A file system without holes keeps them as they are: the content is the same.
    """
    zeros, dug = bytes(BLOCK_BYTES), 0
    try:
        with open(path, "r+b", buffering=0) as file:
            size, at = os.fstat(file.fileno()).st_size, 0
            while at < size:
                if (block := os.pread(file.fileno(), BLOCK_BYTES, at)) == zeros[: len(block)]:
                    if not _dig(file.fileno(), at, len(block)):
                        return dug
                    dug += len(block)
                at += len(block)
    except OSError as error:
        raise HostError(f"{path} cannot be made sparse: {error.strerror}") from error
    return dug


def _dig(descriptor: int, at: int, length: int) -> bool:
    mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
    return bool(_libc.fallocate(descriptor, mode, ctypes.c_long(at), ctypes.c_long(length)) == 0)
