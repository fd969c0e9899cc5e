"""The memory of another process, as far as it has mapped one file so that its writes stay with it.

A page of such a mapping that was written is anonymous: no longer the file's, in memory or swapped out. The launcher
opens both descriptors; whoever holds them may read and write all memory of that one process. Blocks.
Source: the kernel's admin-guide/mm/pagemap, linux/fs.h
"""

from __future__ import annotations

import array
import ctypes
import errno
import fcntl
import mmap
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from casemate.errors import HostError

PAGE_BYTES = mmap.PAGESIZE
PAGEMAP_SCAN = 0xC0606610  # _IOWR('f', 16, struct pm_scan_arg); Linux 6.7
PAGE_IS_FILE, PAGE_IS_PRESENT, PAGE_IS_SWAPPED = 1 << 2, 1 << 3, 1 << 4
SCANNED_AT_ONCE = 512  # regions: as many as the kernel gathers; with room for more, Linux 6.18 tells some twice
ENTRY_BYTES = 8  # of pagemap, for each page
TOP_BYTE = 7  # of an entry: bit 63 present, 62 swapped, 61 a file's (or shared)
_WRITTEN = bytes(byte & 0xC0 != 0 and not byte & 0x20 for byte in range(256))
_TOUCHED = bytes(byte & 0xC0 != 0 for byte in range(256))
_RUN = re.compile(rb"\x01+")


_SCAN_ARG = (
    "size flags start end walk_end vec vec_len max_pages "
    "category_inverted category_mask category_anyof_mask return_mask"
)


class _ScanArg(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in _SCAN_ARG.split()]


class _Region(ctypes.Structure):
    _fields_ = [("start", ctypes.c_uint64), ("end", ctypes.c_uint64), ("categories", ctypes.c_uint64)]


@dataclass(frozen=True, slots=True)
class Runs:
    """Pages of a mapping that follow each other: *count[i]* from *first[i]* on, in order, none twice."""

    first: Sequence[int]
    count: Sequence[int]

    @property
    def pages(self) -> int:
        return sum(self.count)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return zip(self.first, self.count, strict=True)

    def __len__(self) -> int:
        return len(self.first)


@dataclass(frozen=True, slots=True)
class ProcessMemory:
    """Owns two descriptors of /proc/PID. The mapping begins at *start*, with the file's first byte."""

    mem: int
    pagemap: int
    start: int
    size_bytes: int

    def __enter__(self) -> ProcessMemory:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.mem)
        os.close(self.pagemap)

    def written(self) -> Runs:
        """The pages that the process wrote. Raises HostError when the kernel does not say."""
        return self._told(touched=False)

    def touched(self) -> Runs:
        """The pages that the process wrote or read, and some beside those it read. Raises HostError."""
        return self._told(touched=True)

    def _told(self, *, touched: bool) -> Runs:
        try:
            runs = scan(self.pagemap, self.start, self.size_bytes, touched=touched)
            if os.pread(self.pagemap, ENTRY_BYTES, self.start // PAGE_BYTES * ENTRY_BYTES):
                return runs
            raise HostError("the kernel does not tell the written pages: the process has ended")  # the scan found none
        except OSError as error:
            if error.errno not in (errno.ENOTTY, errno.EINVAL, errno.EILSEQ):  # Linux before 6.7, or one not as known
                raise HostError(f"the kernel does not tell the written pages: {error}") from error
        return read_pagemap(self.pagemap, self.start, self.size_bytes, touched=touched)

    def read_into(self, page: int, buffer: memoryview) -> None:
        """Fill *buffer* from *page* on. Raises HostError, also when the process has ended."""
        at, done = self.start + page * PAGE_BYTES, 0
        while done < len(buffer):
            try:
                got = os.preadv(self.mem, [buffer[done:]], at + done)
            except OSError as error:
                raise HostError(f"a process' memory cannot be read: {error}") from error
            if got == 0:
                raise HostError("a process' memory cannot be read: it has ended")
            done += got

    def write(self, page: int, data: memoryview) -> None:
        """Put *data* from *page* on. Raises HostError, also when the process has ended or may have no more memory."""
        at, done = self.start + page * PAGE_BYTES, 0
        while done < len(data):
            try:
                put = os.pwrite(self.mem, data[done:], at + done)
            except OSError as error:
                raise HostError(f"a process' memory cannot be written: {error}") from error
            if put == 0:
                raise HostError("a process' memory cannot be written: it has ended")
            done += put


def scan(pagemap: int, start: int, size_bytes: int, *, touched: bool = False) -> Runs:
    """By the PAGEMAP_SCAN ioctl what was written; *touched*: also what was read.

    Raises OSError: ENOTTY before Linux 6.7, EILSEQ for an answer that is not in order.
    """
    regions = (_Region * SCANNED_AT_ONCE)()
    end = start + size_bytes
    wanted = _ScanArg(
        size=ctypes.sizeof(_ScanArg),
        start=start,
        end=end,
        vec=ctypes.addressof(regions),
        vec_len=SCANNED_AT_ONCE,
        category_inverted=PAGE_IS_FILE,
        category_mask=0 if touched else PAGE_IS_FILE,
        category_anyof_mask=PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
        return_mask=0 if touched else PAGE_IS_FILE,  # never so here: neighbours are told as one, swapped out or not
    )
    first, count = array.array("Q"), array.array("Q")
    told = start
    while wanted.start < end:
        found = fcntl.ioctl(pagemap, PAGEMAP_SCAN, wanted)
        for region in regions[:found]:
            if not told <= region.start < region.end <= end:
                raise OSError(errno.EILSEQ, "PAGEMAP_SCAN tells regions out of order")
            told = region.end
            page, pages = (region.start - start) // PAGE_BYTES, (region.end - region.start) // PAGE_BYTES
            if first and first[-1] + count[-1] == page:  # the kernel's own buffer ended in between
                count[-1] += pages
            else:
                first.append(page)
                count.append(pages)
        if wanted.walk_end <= wanted.start:
            raise OSError(errno.EILSEQ, "PAGEMAP_SCAN does not go on")
        wanted.start = wanted.walk_end
    return Runs(first, count)


def read_pagemap(pagemap: int, start: int, size_bytes: int, *, touched: bool = False) -> Runs:
    """As ``scan``, by reading an entry for each page. Raises HostError."""
    wanted = size_bytes // PAGE_BYTES * ENTRY_BYTES
    entries = bytearray(wanted)
    view, done = memoryview(entries), 0
    while done < wanted:
        try:
            got = os.preadv(pagemap, [view[done:]], start // PAGE_BYTES * ENTRY_BYTES + done)
        except OSError as error:
            raise HostError(f"the kernel does not tell the written pages: {error}") from error
        if got == 0:
            raise HostError("the kernel does not tell the written pages: the process has ended")
        done += got
    first, count = array.array("Q"), array.array("Q")
    for run in _RUN.finditer(entries[TOP_BYTE::ENTRY_BYTES].translate(_TOUCHED if touched else _WRITTEN)):
        first.append(run.start())
        count.append(run.end() - run.start())
    return Runs(first, count)
