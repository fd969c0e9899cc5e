"""The digest of a memory is of its bytes alone, wherever its holes are; and of each of its bytes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.sandbox.digests import CHUNK_BYTES, digest_of_memory

PIECES = st.lists(st.tuples(st.integers(0, 5 * CHUNK_BYTES), st.binary(min_size=1, max_size=64)), max_size=6)


def written(path: Path, size: int, pieces: list[tuple[int, bytes]], *, filled: bool = False) -> Path:
    with path.open("wb") as file:
        if filled:
            file.write(bytes(size))
        file.truncate(size)
        for at, data in pieces:
            os.pwrite(file.fileno(), data[: max(0, size - at)], at)
    return path


@given(size=st.integers(0, 5 * CHUNK_BYTES), pieces=PIECES)
def test_holes_do_not_matter(
    tmp_path_factory: pytest.TempPathFactory, size: int, pieces: list[tuple[int, bytes]]
) -> None:
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


def test_no_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(written(tmp_path / "memory", 10, [(0, b"a")]))
    with pytest.raises(OSError, match="symbolic"):
        digest_of_memory(tmp_path / "link")
