"""What a clone needs first, recorded and read ahead."""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from casemate.host.mapping import PAGE_BYTES
from casemate.vmm import SnapshotFiles
from casemate.vmm.working_set import FORMAT, GAP_PAGES, ReadAhead, joined, read_ahead

PAGES = 16_384  # the kernel reads on beyond what was asked for, by megabytes


@pytest.fixture
def snapshot(tmp_path: Path) -> SnapshotFiles:
    (tmp_path / "memory").write_bytes(bytes(PAGE_BYTES))
    return SnapshotFiles(tmp_path / "memory", tmp_path / "state", tmp_path / "working-set")


@pytest.fixture
def cold(snapshot: SnapshotFiles) -> SnapshotFiles:
    """Whose memory is on the disk, and no more in the page cache."""
    snapshot.memory.write_bytes(os.urandom(PAGES * PAGE_BYTES))
    with snapshot.memory.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if is_cached(snapshot.memory, 0) or is_cached(snapshot.memory, PAGES - 1):
        pytest.skip("the page cache of this file system cannot be emptied")
    return snapshot


def is_cached(path: Path, page: int) -> bool:
    """As mincore(2) has it: a read that may not wait would have the kernel read ahead."""
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapping:
        told = (ctypes.c_ubyte * (len(mapping) // PAGE_BYTES))()
        place = ctypes.c_char.from_buffer(mapping)
        try:
            asked = ctypes.c_void_p(ctypes.addressof(place)), ctypes.c_size_t(len(mapping)), told
            assert ctypes.CDLL(None, use_errno=True).mincore(*asked) == 0
        finally:
            del place  # else it can't be unmapped
        return bool(told[page] & 1)


def recorded(snapshot: SnapshotFiles, runs: Any, **other: Any) -> SnapshotFiles:
    assert snapshot.working_set is not None
    body = {"format": FORMAT, "page_bytes": PAGE_BYTES, "runs": runs} | other
    snapshot.working_set.write_text(json.dumps(body))
    return snapshot


def in_time(found: Callable[[], bool]) -> bool:
    """The kernel reads beside us."""
    deadline = time.monotonic() + 30
    while not found() and time.monotonic() < deadline:
        time.sleep(0.01)
    return found()


def test_what_is_recorded_comes_into_memory_and_not_all(cold: SnapshotFiles) -> None:
    assert read_ahead(recorded(cold, [[100, 50], [300, 1]])) == 51 * PAGE_BYTES
    assert in_time(lambda: all(is_cached(cold.memory, page) for page in (*range(100, 150), 300)))
    assert not is_cached(cold.memory, PAGES - 1)


@pytest.mark.parametrize(
    ("runs", "other"),
    [
        ([[0]], {}),
        ([[0, "x"]], {}),
        ([[-1, 5]], {}),
        ([[0, 0]], {}),
        ([[0, 1 << 50]], {}),
        ({}, {}),
        (None, {}),
        ([[0, 10]], {"format": 2}),
        ([[0, 10]], {"page_bytes": 65_536}),
    ],
)
def test_what_is_no_record_is_nobodys_loss(snapshot: SnapshotFiles, runs: Any, other: dict[str, Any]) -> None:
    assert read_ahead(recorded(snapshot, runs, **other)) == 0


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"[" * 100_000, b"\xff"])
def test_so_is_what_is_no_json(snapshot: SnapshotFiles, content: bytes) -> None:
    assert snapshot.working_set is not None
    snapshot.working_set.write_bytes(content)
    assert read_ahead(snapshot) == 0


def test_nothing_recorded_nothing_read(snapshot: SnapshotFiles) -> None:
    assert read_ahead(snapshot) == 0
    assert read_ahead(SnapshotFiles(snapshot.memory, snapshot.state)) == 0


def test_parts_with_small_gaps_are_one() -> None:
    assert joined([(0, 10), (10 + GAP_PAGES, 5), (16 + 2 * GAP_PAGES, 1)]) == [
        [0, 15 + GAP_PAGES],
        [16 + 2 * GAP_PAGES, 1],
    ]
    assert joined([]) == []


def test_only_the_first_of_a_while_reads_ahead(snapshot: SnapshotFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    monkeypatch.setattr("casemate.vmm.working_set.read_ahead", lambda found: read.append(found.memory))

    async def run() -> None:
        ahead = ReadAhead()
        for _ in range(3):
            await ahead.of(snapshot)
        assert read == [snapshot.memory]
        monkeypatch.setattr("casemate.vmm.working_set.FRESH_S", 0.0)
        await ahead.of(snapshot)
        assert len(read) == 2

    anyio.run(run)
