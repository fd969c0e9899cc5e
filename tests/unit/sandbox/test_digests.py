"""The digest of a memory is of its bytes alone, wherever its holes are; and of each of its bytes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.sandbox.digests import CHUNK_BYTES, KNOWN_BASES, Bases, digest_of_memory

Pieces = list[tuple[int, bytes]]
PIECES = st.lists(st.tuples(st.integers(0, 5 * CHUNK_BYTES), st.binary(min_size=1, max_size=64)), max_size=6)


def written(path: Path, size: int, pieces: Pieces, *, filled: bool = False) -> Path:
    with path.open("wb") as file:
        if filled:
            file.write(bytes(size))
        file.truncate(size)
        for at, data in pieces:
            os.pwrite(file.fileno(), data[: max(0, size - at)], at)
    return path


@given(size=st.integers(0, 5 * CHUNK_BYTES), pieces=PIECES)
def test_holes_do_not_matter(tmp_path_factory: pytest.TempPathFactory, size: int, pieces: Pieces) -> None:
    folder = tmp_path_factory.mktemp("holes")
    sparse = written(folder / "sparse", size, pieces)
    filled = written(folder / "filled", size, pieces, filled=True)
    assert sparse.read_bytes() == filled.read_bytes()
    assert digest_of_memory(sparse) == digest_of_memory(filled)


@pytest.mark.parametrize("at", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, 3 * CHUNK_BYTES + 5])
def test_every_byte_and_its_place_count(tmp_path: Path, at: int) -> None:
    size = 4 * CHUNK_BYTES
    digests = {
        digest_of_memory(written(tmp_path / "none", size, [])),
        digest_of_memory(written(tmp_path / "longer", size + 1, [])),
        digest_of_memory(written(tmp_path / "one", size, [(at, b"\1")])),
        digest_of_memory(written(tmp_path / "two", size, [(at, b"\2")])),
        digest_of_memory(written(tmp_path / "moved", size, [((at + CHUNK_BYTES) % size, b"\1")])),
    }
    assert len(digests) == 5


@given(size=st.integers(0, 4 * CHUNK_BYTES), pieces=PIECES, changes=PIECES)
def test_a_copys_is_the_same_by_what_is_known_of_its_base(
    tmp_path_factory: pytest.TempPathFactory,
    size: int,
    pieces: Pieces,
    changes: list[tuple[int, bytes]],
) -> None:
    folder, bases = tmp_path_factory.mktemp("copies"), Bases()
    base = written(folder / "base", size, pieces)
    copy = written(folder / "copy", size, [*pieces, *changes])
    shorter = written(folder / "shorter", max(0, size - 1), pieces)
    for one in (copy, base, copy, shorter):
        with bases.open(base) as known:
            assert digest_of_memory(one, known) == digest_of_memory(one)


def test_what_has_not_changed_is_not_hashed_again(tmp_path: Path) -> None:
    bases, size = Bases(), 4 * CHUNK_BYTES
    base = written(tmp_path / "base", size, [(0, b"a"), (2 * CHUNK_BYTES, b"b")])
    copy = written(tmp_path / "copy", size, [(0, b"a"), (2 * CHUNK_BYTES, b"c")])
    with bases.open(base) as known:
        assert known is not None
        right = digest_of_memory(copy, known)
        assert known.known.keys() == {0}
        known.known[0] = bytes(32)
    with bases.open(base) as known:
        assert digest_of_memory(copy, known) != right
    with base.open("r+b") as file:  # another file from here on
        file.write(b"x")
    with bases.open(base) as known:
        assert digest_of_memory(copy, known) == right
    base.unlink()
    with bases.open(base) as known:
        assert known is None


def test_not_all_bases_are_remembered(tmp_path: Path) -> None:
    bases = Bases()
    paths = [written(tmp_path / str(number), 10, [(0, b"a")]) for number in range(KNOWN_BASES + 1)]
    for path in paths:
        with bases.open(path) as known:
            digest_of_memory(path, known)
    for path, is_known in ((paths[-1], True), (paths[0], False)):
        with bases.open(path) as known:
            assert known is not None
            assert bool(known.known) is is_known


def test_no_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(written(tmp_path / "memory", 10, [(0, b"a")]))
    with pytest.raises(OSError, match="symbolic"):
        digest_of_memory(tmp_path / "link")
