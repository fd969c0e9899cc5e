"""What a cell said, in order: output and results, addressed by one offset over all of it.

Large results stay in the memory files that the context made: their pages are the user's, not the agent's. What
is in such a file the context may still change; nobody here reads it, but to hand it on.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from itertools import islice

LOG_BYTES = 1 << 20  # in the agent's own memory
FILE_BYTES = 32 << 20  # in memory files
STDOUT, STDERR, RESULT = 1, 2, 3
_READ_BYTES = 65_536
_MERGE_BELOW = 8192  # neighbours are joined up to here, so that single bytes do not cost an object each
_RECORD_COST = 256  # of the objects around a piece


class Record:
    """One piece: some output, or one whole result; in `data`, or in the memory file `file`."""

    __slots__ = ("data", "file", "size", "start", "sub")

    def __init__(self, sub: int, start: int, data: bytes, file: int = -1, size: int = 0) -> None:
        self.sub, self.start, self.data, self.file = sub, start, data, file
        self.size = size if file >= 0 else len(data)

    def read(self, skip: int) -> bytes | memoryview:
        """Some bytes from *skip* on, at least one."""
        if self.file < 0:
            return memoryview(self.data)[skip:] if skip else self.data
        wanted = min(self.size - skip, _READ_BYTES)
        try:
            found = os.pread(self.file, wanted, skip)
        except OSError:  # whatever the context did to its file
            found = b""
        return found.ljust(wanted)  # cut short since: blanks, so that what was announced still comes


class CellLog:
    """The newest of it; what is before `start` was dropped. Owns the memory files in it."""

    def __init__(self) -> None:
        self._records: deque[Record] = deque()
        self.start = self.end = 0
        self.held = 0  # bytes of ours, with what keeping them costs
        self.held_in_files = 0

    def append(self, sub: int, data: bytes) -> None:
        records = self._records
        last = records[-1] if records else None
        if last is not None and last.sub == sub != RESULT and last.size + len(data) <= _MERGE_BELOW:
            last.data += data
            last.size += len(data)
        else:
            records.append(Record(sub, self.end, data))
            self.held += _RECORD_COST
        self.held += len(data)
        self.end += len(data)

    def append_file(self, file: int, size: int) -> None:
        """A result of *size* bytes, in a memory file that is ours from now on."""
        self._records.append(Record(RESULT, self.end, b"", file, size))
        self.held += _RECORD_COST
        self.held_in_files += size
        self.end += size

    def is_full(self, times: int = 1) -> bool:
        """Whether it holds so many *times* what it may."""
        return self.held >= times * LOG_BYTES or self.held_in_files >= times * FILE_BYTES

    def trim(self, needed_from: int) -> None:
        """Drop the oldest while it is full, but nothing from offset *needed_from* on."""
        records = self._records
        while records and self.is_full() and records[0].start + records[0].size <= needed_from:
            self._drop_oldest()

    def first_from(self, offset: int) -> int:
        """Where one may begin who wants all from *offset* on: there, or behind what was dropped or is half a result."""
        for record, skip in self.records_from(max(offset, self.start)):
            return record.start + record.size if skip and record.sub == RESULT else record.start + skip
        return max(offset, self.start)

    def records_from(self, offset: int) -> Iterator[tuple[Record, int]]:
        """The records from *offset* on, and how much of each lies before it. Mostly asked for the newest."""
        records = self._records
        at = len(records)
        for record in reversed(records):
            if record.start + record.size <= offset:
                break
            at -= 1
        for record in islice(records, at, None):
            yield record, max(offset - record.start, 0)

    def close(self) -> None:
        while self._records:
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        record = self._records.popleft()
        self.start = record.start + record.size
        self.held -= _RECORD_COST + len(record.data)
        if record.file >= 0:
            os.close(record.file)
            self.held_in_files -= record.size
