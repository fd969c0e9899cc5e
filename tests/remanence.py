"""Where on this host a secret is still to be found: in processes, in files, in deleted files, in swap.

Only a copy's middle half is looked for, so that one with torn ends counts. What is being looked for lies in the memory
of whoever looks, which is therefore no place that is searched.
"""

from __future__ import annotations

import os
import re
import secrets
import stat
import string
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.fault_world import vmms
from tests.traces import children_of

PAGE_BYTES = os.sysconf("SC_PAGESIZE")
CHUNK = 4 << 20
ENTRY_BYTES = 8  # of /proc/PID/pagemap, for each page; in its last byte bit 7 is present, bit 6 swapped
_HERE = bytes(byte & 0xC0 != 0 for byte in range(256))
_RUN = re.compile(rb"\x01+")
_MAPPED = re.compile(r"([0-9a-f]+)-([0-9a-f]+) r")


@dataclass(frozen=True)
class Canary:
    """64 random characters, which therefore fit into an environment too."""

    text: str

    @classmethod
    def draw(cls) -> Canary:
        return cls("".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(64)))

    @property
    def shares(self) -> tuple[str, str]:
        """Two texts that are it only together: who is told these can be given it and no copy of it is made."""
        return self.text[:32], self.text[32:]

    @property
    def middle(self) -> bytes:
        return self.text[16:48].encode()


@dataclass
class Found:
    """The *places* with a copy, and how much was looked through: nothing is proved by what was not read."""

    places: set[str] = field(default_factory=set)
    memory_bytes: int = 0
    file_bytes: int = 0
    processes: int = 0
    deleted: int = 0
    swaps: tuple[str, ...] = ()


class Search:
    """For one canary. ``found`` gathers; whoever has ended, or is no more, when it is looked at is passed over."""

    def __init__(self, canary: Canary) -> None:
        self.found = Found()
        self._needle = canary.middle
        self._overlap = len(self._needle) - 1
        self._buffer = bytearray(self._overlap + CHUNK)
        self._seen: set[tuple[int, int]] = set()

    def memory(self, pid: int, name: str) -> None:
        """All readable mappings of a process, as far as they have memory or swap behind them."""
        with suppress(ProcessLookupError, FileNotFoundError):
            maps = Path(f"/proc/{pid}/maps").read_text()
            mem, pagemap = (os.open(f"/proc/{pid}/{part}", os.O_RDONLY | os.O_CLOEXEC) for part in ("mem", "pagemap"))
            try:
                self.found.processes += 1
                for line in maps.splitlines():
                    if mapped := _MAPPED.match(line):
                        for start, end in _here(pagemap, int(mapped[1], 16), int(mapped[2], 16)):
                            self.found.memory_bytes += self._through(mem, start, end, name)
            finally:
                os.close(mem)
                os.close(pagemap)

    def below(self, folder: Path) -> None:
        """Every file there is, by any of its names."""
        for root, _, names in os.walk(folder):
            for name in names:
                path = Path(root, name)
                with suppress(FileNotFoundError):
                    if stat.S_ISREG(path.lstat().st_mode):
                        self.file(path, str(path.relative_to(folder)))

    def held(self, pid: int) -> None:
        """The deleted files that a process has still open or mapped."""
        for kind in ("fd", "map_files"):
            with suppress(ProcessLookupError, FileNotFoundError):
                for entry in os.scandir(f"/proc/{pid}/{kind}"):
                    with suppress(FileNotFoundError):
                        about = os.stat(entry.path)
                        if stat.S_ISREG(about.st_mode) and about.st_nlink == 0:
                            self.found.deleted += 1
                            self.file(Path(entry.path), f"deleted {os.readlink(entry.path)}")

    def swap(self, table: Path = Path("/proc/swaps")) -> None:
        """All that the host has swapped out, of whomever. Source: proc(5)"""
        self.found.swaps = tuple(line.split()[0] for line in table.read_text().splitlines()[1:])
        for place in self.found.swaps:
            self.file(Path(place), f"swap {place}")

    def file(self, path: Path, name: str) -> None:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            about = os.fstat(descriptor)
            if (about.st_dev, about.st_ino) in self._seen:
                return
            self._seen.add((about.st_dev, about.st_ino))
            for start, end in _data(descriptor, about):
                self.found.file_bytes += self._through(descriptor, start, end, name)
        finally:
            os.close(descriptor)

    def _through(self, descriptor: int, start: int, end: int, name: str) -> int:
        """Bytes read. A page that cannot be read is a device's: the next one may be none."""
        view, at, kept, read = memoryview(self._buffer), start, 0, 0
        while at < end:
            try:
                got = os.preadv(descriptor, [view[kept : kept + min(CHUNK, end - at)]], at)
            except OSError:
                at, kept = at + PAGE_BYTES, 0
                continue
            if got == 0:  # the process has ended, or the file has become shorter
                break
            at, have, read = at + got, kept + got, read + got
            if self._buffer.find(self._needle, 0, have) >= 0:
                self.found.places.add(name)
            kept = min(self._overlap, have)
            view[:kept] = view[have - kept : have]
        return read


def _here(pagemap: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Where a mapping's pages are present or swapped out; of the others the file that they are of says it."""
    for low in range(start, end, PAGE_BYTES << 20):
        pages = (min(end, low + (PAGE_BYTES << 20)) - low) // PAGE_BYTES
        entries = os.pread(pagemap, pages * ENTRY_BYTES, low // PAGE_BYTES * ENTRY_BYTES)
        for run in _RUN.finditer(entries[ENTRY_BYTES - 1 :: ENTRY_BYTES].translate(_HERE)):
            yield low + run.start() * PAGE_BYTES, low + run.end() * PAGE_BYTES


def _data(descriptor: int, about: os.stat_result) -> Iterator[tuple[int, int]]:
    """Where a file has data, and all of a device."""
    size = os.lseek(descriptor, 0, os.SEEK_END)
    if not stat.S_ISREG(about.st_mode):
        yield 0, size
        return
    at = 0
    while at < size:
        try:
            start = os.lseek(descriptor, at, os.SEEK_DATA)
        except OSError:  # a hole to the end
            return
        at = os.lseek(descriptor, start, os.SEEK_HOLE)
        yield start, at


def search(canary: Canary, home: Path, daemon: int) -> Found:
    """In the memory of all machines of *home*, in all files below it, in what its *daemon* holds, in swap."""
    begun = Search(canary)
    for pid, name in vmms(home).items():
        begun.memory(pid, f"memory of {name}")
    begun.below(home)
    for pid in children_of(daemon) | {daemon}:
        begun.held(pid)
    begun.swap()
    return begun.found
