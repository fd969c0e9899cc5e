"""Another process' private copy of a file: what it wrote is found by both of the kernel's ways, read and replaced."""

from __future__ import annotations

import errno
import mmap
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from casemate.errors import HostError
from casemate.host.account import areas_of
from casemate.host.mapping import PAGE_BYTES, ProcessMemory, read_pagemap, scan

PAGES = 8192
CODE = f"""
import mmap, sys, time
mapping = mmap.mmap(0, {PAGES * PAGE_BYTES}, access=mmap.ACCESS_COPY)
mapping[20 * {PAGE_BYTES}]  # only read
for page in eval(sys.argv[1]):
    mapping[page * {PAGE_BYTES}] = page % 255 + 1
print("ready", flush=True)
time.sleep(60)
"""


@contextmanager
def a_process(folder: Path, pages: str) -> Iterator[ProcessMemory]:
    """A process that has mapped a file of *PAGES* pages as a clone does, and has written *pages*, an expression."""
    path = folder / "memory"
    path.write_bytes(b"\7" * (PAGES * PAGE_BYTES))
    with open(path, "rb") as file:
        argv = [sys.executable, "-I", "-c", CODE, pages]
        with subprocess.Popen(argv, stdin=file, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None
                assert process.stdout.readline() == "ready\n"
                (area,) = areas_of(Path(f"/proc/{process.pid}"), file.fileno())
                mem = os.open(f"/proc/{process.pid}/mem", os.O_RDWR)
                pagemap = os.open(f"/proc/{process.pid}/pagemap", os.O_RDONLY)
                with ProcessMemory(mem, pagemap, area.begin, area.end - area.begin) as memory:
                    yield memory
            finally:
                process.kill()


@pytest.mark.parametrize(
    ("pages", "expected"),
    [
        ("[]", []),
        ("[0]", [(0, 1)]),
        ("[*range(5, 9), 11]", [(5, 4), (11, 1)]),
        (f"[{PAGES - 1}]", [(PAGES - 1, 1)]),
        (f"range({PAGES})", [(0, PAGES)]),
        (f"range(0, {PAGES}, 2)", [(page, 1) for page in range(0, PAGES, 2)]),  # more than the kernel gathers at once
        (f"range(1, {PAGES}, 5)", [(page, 1) for page in range(1, PAGES, 5)]),
    ],
)
def test_both_ways_find_the_same(pages: str, expected: list[tuple[int, int]], tmp_path: Path) -> None:
    with a_process(tmp_path, pages) as memory:
        assert memory.size_bytes == PAGES * mmap.PAGESIZE
        assert list(read_pagemap(memory.pagemap, memory.start, memory.size_bytes)) == expected
        assert list(memory.written()) == expected
        try:
            assert list(scan(memory.pagemap, memory.start, memory.size_bytes)) == expected
        except OSError as error:
            if error.errno != errno.ENOTTY:
                raise
            pytest.skip("this kernel has no PAGEMAP_SCAN")


def test_pages_are_read_and_replaced(tmp_path: Path) -> None:
    with a_process(tmp_path, "[3]") as memory:
        found = bytearray(2 * PAGE_BYTES)
        memory.read_into(3, memoryview(found))
        assert found[:2] == b"\4\7"
        assert found[PAGE_BYTES:] == b"\7" * PAGE_BYTES
        memory.write(4, memoryview(b"x" * PAGE_BYTES))
        memory.read_into(4, memoryview(found)[:PAGE_BYTES])
        assert found[:PAGE_BYTES] == b"x" * PAGE_BYTES
        assert list(memory.written()) == [(3, 2)], "what was replaced is the process' own"
    assert (tmp_path / "memory").read_bytes() == b"\7" * (PAGES * PAGE_BYTES), "the file is as it was"


def test_a_process_that_has_ended_is_a_typed_error(tmp_path: Path) -> None:
    with a_process(tmp_path, "[3]") as memory:
        kept = ProcessMemory(os.dup(memory.mem), os.dup(memory.pagemap), memory.start, memory.size_bytes)
    with kept:
        for act in (
            kept.written,
            lambda: read_pagemap(kept.pagemap, kept.start, kept.size_bytes),
            lambda: kept.read_into(3, memoryview(bytearray(1))),
            lambda: kept.write(3, memoryview(b"x")),
        ):
            with pytest.raises(HostError):
                act()
