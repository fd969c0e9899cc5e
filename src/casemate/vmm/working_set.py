"""Which of a snapshot's memory a clone needs first, recorded once and read ahead for those that come later.

A clone maps its memory from a file and reads a page when it needs it: from a disk, after the host has started or has
had other things to keep, that is thousands of single reads in the order in which the guest happens to run. One
``posix_fadvise`` for each part of what the first clone touched has the kernel read it at once, in large pieces.

A file of some kilobytes beside the snapshot, ``{"format": 1, "page_bytes", "runs": [[first, count], …]}``: a hint, no
part of what is sealed. One that is not there, or not as it should be, is nobody's loss.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable
from pathlib import Path

import anyio.to_thread

from casemate.errors import HostError
from casemate.host import ProcessMemory
from casemate.host.mapping import PAGE_BYTES
from casemate.vmm.contract import SnapshotFiles

FORMAT = 1
GAP_PAGES = 32  # pages between two parts that it costs less to read than to tell apart
MAX_BYTES = 1 << 20
FRESH_S = 60.0  # what was read so recently is in memory still
MAX_KNOWN = 1024  # snapshots whose last start is remembered


def record(process: ProcessMemory, into: Path) -> None:
    """Write what a clone has touched of its memory so far to the new file *into*. Blocks. Raises HostError."""
    body = {"format": FORMAT, "page_bytes": PAGE_BYTES, "runs": joined(process.touched())}
    try:
        with into.open("x") as file:
            json.dump(body, file)
        into.chmod(0o444)
    except OSError as error:
        raise HostError(f"{into} could not be written: {error.strerror}") from error


def joined(runs: Iterable[tuple[int, int]]) -> list[list[int]]:
    """Parts with small gaps as one."""
    found: list[list[int]] = []
    for first, count in runs:
        if found and first - sum(found[-1]) <= GAP_PAGES:
            found[-1][1] = first + count - found[-1][0]
        else:
            found.append([first, count])
    return found


def read_ahead(snapshot: SnapshotFiles) -> int:
    """Have the kernel begin to read what is recorded for *snapshot*; how many bytes that is. Blocks, briefly."""
    runs = _recorded(snapshot.working_set)
    try:
        with snapshot.memory.open("rb") as file:
            for first, count in runs:
                os.posix_fadvise(file.fileno(), first * PAGE_BYTES, count * PAGE_BYTES, os.POSIX_FADV_WILLNEED)
    except OSError:
        return 0  # whoever opens it to map it says what is wrong with it
    return sum(count for _, count in runs) * PAGE_BYTES


def _recorded(path: Path | None) -> list[tuple[int, int]]:
    if path is None:
        return []
    try:
        with path.open("rb") as file:
            body = json.loads(file.read(MAX_BYTES))
        if (body["format"], body["page_bytes"]) != (FORMAT, PAGE_BYTES):
            return []
        runs = [(int(first), int(count)) for first, count in body["runs"]]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []
    return runs if all(0 <= first < 1 << 40 and 0 < count < 1 << 40 for first, count in runs) else []


class ReadAhead:
    """Of a driver: reads ahead for the first clone of a while, and leaves the next ones alone."""

    def __init__(self) -> None:
        self._last: dict[Path, float] = {}

    async def of(self, snapshot: SnapshotFiles) -> None:
        now = time.monotonic()
        last = self._last.pop(snapshot.memory, None)
        self._last[snapshot.memory] = now
        if len(self._last) > MAX_KNOWN:
            del self._last[next(iter(self._last))]
        if snapshot.working_set is not None and (last is None or now - last > FRESH_S):
            await anyio.to_thread.run_sync(read_ahead, snapshot)
