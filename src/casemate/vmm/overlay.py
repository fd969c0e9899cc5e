"""The whole memory of a clone as one file: its base, copied before, with the pages written over that the guest wrote.

So a machine that is copied stands on one file, however many copies of copies came before it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

from casemate.errors import HostError, HostFull
from casemate.host.mapping import PAGE_BYTES, ProcessMemory

BATCH_BYTES = 4 << 20


def overlay(memory: ProcessMemory, into: Path, between: Callable[[], object] = lambda: None) -> int:
    """Write the pages that a process wrote where they belong in the file *into*; how many bytes. Blocks.

    *into* is a copy of the file that the process has mapped; it is not synchronised to the disk. The process has to
    stand still. *between* is called now and then; what it raises ends it, as does all else, with *into* half written.
    Raises HostFull, HostError.
    """
    batch = memoryview(bytearray(BATCH_BYTES))
    written = 0
    try:
        file = os.open(into, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            if (found := os.fstat(file).st_size) != memory.size_bytes:
                raise HostError(f"{into} has {found} bytes, the memory {memory.size_bytes}")
            for first, count in memory.written():
                for page in range(first, first + count, BATCH_BYTES // PAGE_BYTES):
                    piece = batch[: min(first + count - page, BATCH_BYTES // PAGE_BYTES) * PAGE_BYTES]
                    memory.read_into(page, piece)
                    _write_all(file, piece, page * PAGE_BYTES)
                    written += len(piece)
                    if len(piece) == BATCH_BYTES:
                        between()
        finally:
            os.close(file)
    except OSError as error:
        kind = HostFull if error.errno in (errno.ENOSPC, errno.EDQUOT) else HostError
        raise kind(f"{into} could not be written: {error.strerror}", hint="free some disk space") from error
    return written


def _write_all(file: int, data: memoryview, at: int) -> None:
    while data:
        done = os.pwrite(file, data, at)
        data, at = data[done:], at + done
