"""The file of a memory difference: what is saved is loaded, and what is not exactly so is refused before any harm."""

from __future__ import annotations

import hashlib
import os
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.host.test_mapping import PAGES, a_process

from casemate.errors import HostFull, ImageBroken
from casemate.host.mapping import PAGE_BYTES, Runs
from casemate.vmm import difference
from casemate.vmm.difference import HEADER, load, read_head, save

MEMORY_BYTES = PAGES * PAGE_BYTES


def head_of(content: bytes, size: int | None = None) -> Runs:
    descriptor = os.memfd_create("difference")
    try:
        os.write(descriptor, content)
        os.truncate(descriptor, len(content) if size is None else size)
        return read_head(descriptor, MEMORY_BYTES)[0]
    finally:
        os.close(descriptor)


def index(*runs: tuple[int, int], **changed: int | bytes) -> bytes:
    fields: dict[str, int | bytes] = {"magic": b"CASEDIFF", "format": 1, "page": PAGE_BYTES, "memory": MEMORY_BYTES}
    fields |= {"runs": len(runs), "pages": sum(count for _, count in runs)} | changed
    return HEADER.pack(*fields.values()) + b"".join(struct.pack("<QQ", *run) for run in runs)


def whole(*runs: tuple[int, int], **changed: int | bytes) -> tuple[bytes, int]:
    """A head, and the size that a file with that head has."""
    head = index(*runs, **changed)
    return head, -(-len(head) // PAGE_BYTES) * PAGE_BYTES + sum(count for _, count in runs) * PAGE_BYTES


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    path, pages = tmp_path / "difference", f"[3, 4, *range(100, 3000), {PAGES - 1}]"
    with a_process(tmp_path / "one", pages) as memory:
        saved = save(memory, path)
        wanted, found = bytearray(MEMORY_BYTES), bytearray(MEMORY_BYTES)
        memory.read_into(0, memoryview(wanted))
    assert saved.pages == 2903
    assert saved.bytes == path.stat().st_size == (saved.pages + 1) * PAGE_BYTES
    assert saved.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    with a_process(tmp_path / "two", "[]") as memory:
        assert load(path, memory) == saved.pages
        memory.read_into(0, memoryview(found))
        assert found == wanted
        again = save(memory, tmp_path / "again")
    assert again.sha256 == saved.sha256


def test_nothing_written_is_a_difference_too(tmp_path: Path) -> None:
    with a_process(tmp_path, "[]") as memory:
        assert save(memory, tmp_path / "difference").pages == 0
        assert load(tmp_path / "difference", memory) == 0


@pytest.mark.parametrize(
    ("head", "size"),
    [
        (b"", 0),
        whole((3, 1), magic=b"CASEDIFX"),
        whole((3, 1), format=2),
        whole((3, 1), page=PAGE_BYTES * 2),
        whole((3, 1), memory=MEMORY_BYTES * 2),
        whole((3, 2), (4, 1)),  # overlapping
        whole((3, 1), (4, 1)),  # touching
        whole((9, 1), (3, 1)),  # unsorted
        whole((PAGES, 1)),
        whole((PAGES - 1, 2)),
        whole((2**64 - 1, 1)),
        whole((1, 2**64 - 1), (5, 2), pages=1),
        whole((3, 0)),
        whole((3, 1), pages=2),
        whole((3, 1), runs=2),
        whole((3, 1), runs=2**64 - 1),
        whole((3, 1), pages=2**64 - 1),
        (whole((3, 1))[0], 2 * PAGE_BYTES - 1),  # too short
        (whole((3, 1))[0], 2 * PAGE_BYTES + 1),  # too long
    ],
)
def test_a_file_that_is_not_so_is_refused_before_anything_is_written(head: bytes, size: int, tmp_path: Path) -> None:
    path = tmp_path / "difference"
    path.write_bytes(head)
    os.truncate(path, min(size, 1 << 24))
    with a_process(tmp_path, "[]") as memory:
        with pytest.raises(ImageBroken, match="difference"):
            load(path, memory)
        assert list(memory.written()) == []


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with a_process(tmp_path, "[]") as memory, pytest.raises(ImageBroken):
        load(tmp_path / "nowhere", memory)


RUNS = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 9)), max_size=60)


@given(RUNS)
def test_any_index_comes_back(steps: list[tuple[int, int]]) -> None:
    first, runs = 0, []
    for gap, count in steps:
        runs.append((first + gap, count))
        first += gap + count
    head, size = whole(*runs)
    made = difference._head(Runs([a for a, _ in runs], [b for _, b in runs]), MEMORY_BYTES)
    assert made.startswith(head)
    assert list(head_of(made, size)) == runs


@given(RUNS, st.binary(min_size=1, max_size=9), st.integers(0, 400))
def test_any_change_is_refused_or_harmless(steps: list[tuple[int, int]], patch: bytes, at: int) -> None:
    """What is taken has runs that rise and lie within the memory, and as many pages as the file."""
    head, size = whole(*[(50 * number + gap, count) for number, (gap, count) in enumerate(steps)])
    changed = (head[:at] + patch + head[at + len(patch) :])[: max(len(head), at)]
    try:
        runs = head_of(changed, size)
    except difference._Broken:
        return
    end = -1
    for first, count in runs:
        assert first > end
        end = first + count
        assert count > 0
        assert end <= PAGES
    assert -(-(HEADER.size + 16 * len(runs)) // PAGE_BYTES) * PAGE_BYTES + runs.pages * PAGE_BYTES == size


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("only root can mount a disk that is soon full")
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=5m,mode=0700", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def test_a_full_disk_is_a_typed_error(small_disk: Path, tmp_path: Path) -> None:
    with a_process(tmp_path, "range(3000)") as memory, pytest.raises(HostFull):
        save(memory, small_disk / "difference")


def test_giving_up_in_between(tmp_path: Path) -> None:
    """What the caller raises comes through, and at most one more piece was written."""

    def give_up() -> None:
        raise KeyError("cancelled")

    with a_process(tmp_path, "range(3000)") as memory:
        with pytest.raises(KeyError):
            save(memory, tmp_path / "difference", give_up)
        assert (tmp_path / "difference").stat().st_size <= difference.BATCH_BYTES + PAGE_BYTES
