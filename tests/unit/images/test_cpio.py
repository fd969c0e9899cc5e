"""The newc writer: read back by a reader of our own and by the cpio program."""

from __future__ import annotations

import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.images import cpio

names = st.text("abcdefgh-_.", min_size=1, max_size=12).filter(lambda n: n not in (".", ".."))
paths = st.lists(names, min_size=1, max_size=4).map("/".join)


def read(data: bytes) -> dict[str, tuple[int, bytes]]:
    """A reader written from the format's description, not from our writer."""
    found, at = {}, 0
    while True:
        assert data[at : at + 6] == b"070701"
        field = [int(data[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        mode, size, name_size = field[1], field[6], field[11]
        name = data[at + 110 : at + 110 + name_size - 1].decode()
        start = (at + 110 + name_size + 3) & ~3
        if name == "TRAILER!!!":
            return found
        assert name not in found
        found[name] = (mode, data[start : start + size])
        at = (start + size + 3) & ~3


@given(st.dictionaries(paths, st.binary(max_size=300), max_size=8))
def test_what_goes_in_comes_out(files: dict[str, bytes]) -> None:
    plain = {p: c for p, c in files.items() if not any(q.startswith(p + "/") for q in files)}
    found = read(cpio.archive(cpio.file(p, c) for p, c in plain.items()))
    assert {p: c for p, (mode, c) in found.items() if stat.S_ISREG(mode)} == plain
    for path in plain:
        for depth in range(1, path.count("/") + 1):
            assert stat.S_ISDIR(found["/".join(path.split("/")[:depth])][0])


@pytest.mark.parametrize("path", ["", "/etc/passwd", "../up", "a/../b", "a//b", "a/.", "a\0b", "TRAILER!!!"])
def test_a_path_that_leads_out_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match=r"path|twice"):
        cpio.archive([cpio.file(path, b"")])


def test_the_same_path_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="twice"):
        cpio.archive([cpio.file("a", b""), cpio.file("a", b"")])


def test_the_same_entries_give_the_same_bytes_in_whole_blocks() -> None:
    entries = [cpio.folder("dev"), cpio.character_device("dev/console", 5, 1), cpio.symlink("sh", "busybox")]
    assert cpio.archive(entries) == cpio.archive(list(entries))
    assert len(cpio.archive(entries)) % 512 == 0


def test_the_cpio_program_reads_it(tmp_path: Path) -> None:
    if shutil.which("cpio") is None:
        pytest.skip("no cpio on this host")
    data = cpio.archive([cpio.file("bin/tool", b"#!/bin/sh\n", 0o755), cpio.symlink("bin/sh", "tool")])
    subprocess.run(["cpio", "-id", "--quiet"], input=data, cwd=tmp_path, check=True)
    assert (tmp_path / "bin/tool").read_bytes() == b"#!/bin/sh\n"
    assert (tmp_path / "bin/tool").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "bin/sh").readlink() == Path("tool")
