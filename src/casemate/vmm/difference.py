"""What a clone's guest wrote, beside the memory it was cloned from: a compact file.

Written once, by whoever suspends a machine, into a new file; read by whoever restores it; deleted by their caller.

    8   "CASEDIFF"
    4   format, 1
    4   bytes of a page
    8   bytes of the memory it belongs to
    8   runs
    8   pages, in all runs
    16 a run    first page, number of pages: rising, and no two of them touch
    (zeros up to a whole page)
    the pages

All numbers are little-endian. What is not exactly so is refused before anything is written anywhere.
"""

from __future__ import annotations

import array
import errno
import hashlib
import os
import struct
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from casemate.errors import HostError, HostFull, ImageBroken
from casemate.host.mapping import PAGE_BYTES, ProcessMemory, Runs

MAGIC, FORMAT = b"CASEDIFF", 1
HEADER = struct.Struct("<8sIIQQQ")
RUN_BYTES = 16
BATCH_BYTES = 4 << 20
BROKEN_HINT = "casemate resume --cold starts the sandbox from its disk"
assert sys.byteorder == "little", "the index is written as it lies in memory"


@dataclass(frozen=True, slots=True)
class Difference:
    """A file that was written: *bytes* long, *pages* of memory in it."""

    pages: int
    bytes: int
    sha256: str
    took_ms: float


def save(memory: ProcessMemory, into: Path, between: Callable[[], object] = lambda: None) -> Difference:
    """Write the pages that a process wrote into the new file *into*, and have it on the disk. Blocks.

    The process has to stand still. *between* is called now and then; what it raises ends it, as does all else, with
    a partial file left. Raises HostFull, HostError.
    """
    began = time.perf_counter()
    runs = memory.written()
    try:
        with open(into, "xb", buffering=0, opener=_private) as file:
            digest, written = _write(memory, runs, file.fileno(), between)
            os.fsync(file.fileno())
    except OSError as error:
        kind = HostFull if error.errno in (errno.ENOSPC, errno.EDQUOT) else HostError
        raise kind(f"{into} could not be written: {error.strerror}", hint="free some disk space") from error
    return Difference(runs.pages, written, digest, (time.perf_counter() - began) * 1000)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


def _write(memory: ProcessMemory, runs: Runs, file: int, between: Callable[[], object]) -> tuple[str, int]:
    digest = hashlib.sha256()
    head = _head(runs, memory.size_bytes)
    digest.update(head)
    _write_all(file, memoryview(head))
    batch = memoryview(bytearray(BATCH_BYTES))
    filled = 0
    for first, count in runs:
        while count:
            taken = min(count, (BATCH_BYTES - filled) // PAGE_BYTES)
            memory.read_into(first, batch[filled : filled + taken * PAGE_BYTES])
            filled += taken * PAGE_BYTES
            first, count = first + taken, count - taken
            if filled == BATCH_BYTES:
                digest.update(batch)
                _write_all(file, batch)
                filled = 0
                between()
    digest.update(batch[:filled])
    _write_all(file, batch[:filled])
    return digest.hexdigest(), len(head) + runs.pages * PAGE_BYTES


def _head(runs: Runs, memory_bytes: int) -> bytes:
    index = array.array("Q", bytes(RUN_BYTES * len(runs)))
    index[0::2], index[1::2] = array.array("Q", runs.first), array.array("Q", runs.count)
    head = HEADER.pack(MAGIC, FORMAT, PAGE_BYTES, memory_bytes, len(runs), runs.pages) + index.tobytes()
    return head + bytes(-len(head) % PAGE_BYTES)


def _write_all(file: int, data: memoryview) -> None:
    while data:
        data = data[os.write(file, data) :]


def load(path: Path, memory: ProcessMemory, between: Callable[[], object] = lambda: None) -> int:
    """Write the pages of the file *path* where they belong in another process' memory; how many. Blocks.

    Raises ImageBroken, before anything is written, for a file that is not what ``save`` writes or belongs to another
    memory; HostError when the process does not take the pages: it is to be given up then.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            runs, at = read_head(file.fileno(), memory.size_bytes)
            _copy(file.fileno(), at, runs, memory, between)
    except _Broken as error:
        raise ImageBroken(f"{path}: {error}", hint=BROKEN_HINT) from error
    except OSError as error:
        raise ImageBroken(f"{path} cannot be read: {error.strerror}", hint=BROKEN_HINT) from error
    return runs.pages


class _Broken(Exception):
    """Not a file that ``save`` wrote."""


def read_head(file: int, memory_bytes: int) -> tuple[Runs, int]:
    """The index, every field of it checked, and where the pages begin."""
    size = os.fstat(file).st_size
    head = os.pread(file, HEADER.size, 0)
    if len(head) < HEADER.size:
        raise _Broken(f"it ends after {len(head)} bytes")
    magic, number, page_bytes, of_bytes, run_count, pages = HEADER.unpack(head)
    if magic != MAGIC or number != FORMAT:
        raise _Broken(f"not a memory difference of format {FORMAT}")
    if page_bytes != PAGE_BYTES or of_bytes != memory_bytes:
        raise _Broken(f"it belongs to {of_bytes} bytes of memory in pages of {page_bytes}, this is {memory_bytes}")
    limit = memory_bytes // PAGE_BYTES
    if pages > limit or run_count > pages:
        raise _Broken(f"{run_count} runs of {pages} pages, of {limit} that there are")
    begins = -(-(HEADER.size + RUN_BYTES * run_count) // PAGE_BYTES) * PAGE_BYTES
    if size != begins + pages * PAGE_BYTES:
        raise _Broken(f"it has {size} bytes, not {begins + pages * PAGE_BYTES}")
    index = array.array("Q", os.pread(file, RUN_BYTES * run_count, HEADER.size))
    runs = Runs(index[0::2], index[1::2])
    if len(runs) != run_count:
        raise _Broken("it has become shorter")
    _check(runs, limit, pages)
    return runs, begins


def _check(runs: Runs, limit: int, pages: int) -> None:
    free = 0  # the first page that may come next
    for first, count in runs:
        if first < free or count == 0 or count > limit or first > limit - count:
            raise _Broken(f"{count} pages from {first} on, where {free} is the first that may be")
        free = first + count + 1  # a run that touches the last one would have been part of it
    if runs.pages != pages:
        raise _Broken(f"its runs have {runs.pages} pages, not {pages}")


def _copy(file: int, at: int, runs: Runs, memory: ProcessMemory, between: Callable[[], object]) -> None:
    batch = memoryview(bytearray(BATCH_BYTES))
    held = used = 0  # bytes in the batch, and those of them that have been put
    left = runs.pages * PAGE_BYTES
    for first, count in runs:
        while count:
            if used == held:
                between()
                held, used = _fill(file, at, batch[: min(left, BATCH_BYTES)]), 0
                at, left = at + held, left - held
            taken = min(count, (held - used) // PAGE_BYTES)
            memory.write(first, batch[used : used + taken * PAGE_BYTES])
            used += taken * PAGE_BYTES
            first, count = first + taken, count - taken


def _fill(file: int, at: int, batch: memoryview) -> int:
    done = 0
    while done < len(batch):
        got = os.preadv(file, [batch[done:]], at + done)
        if got == 0:
            raise _Broken("it has become shorter")
        done += got
    return done
