"""Scratch disks: sparse, the same bytes each time, copied without their holes."""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import pytest

from casemate.errors import HostFull
from casemate.images import copy_disk, make_scratch_disk, scratch

MIB = 1 << 20


def occupied_bytes(path: Path) -> int:
    return path.stat().st_blocks * 512


def assert_same_bytes(one: Path, two: Path) -> None:
    """Looks only where either has any: the rest of both is holes."""
    assert one.stat().st_size == two.stat().st_size
    with one.open("rb") as first, two.open("rb") as second:
        for start, end in data_of(first) | data_of(second):
            assert os.pread(first.fileno(), end - start, start) == os.pread(second.fileno(), end - start, start)


def data_of(file: BinaryIO) -> set[tuple[int, int]]:
    """Where it is not a hole. Source: lseek(2)"""
    found, end = set(), 0
    with suppress(OSError):  # ENXIO: nothing but a hole from there on
        while True:
            start = os.lseek(file.fileno(), end, os.SEEK_DATA)
            end = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            found.add((start, end))
    assert found
    return found


def sparse(path: Path) -> Path:
    with path.open("wb") as file:
        file.truncate(64 * MIB)
        for offset in (0, 20 * MIB, 64 * MIB - 4096):
            os.pwrite(file.fileno(), b"data" * 1024, offset)
    return path


@pytest.mark.parametrize("disk_mib", [16, 1024])
def test_a_new_disk_is_sparse_sound_and_always_the_same(disk_mib: int, tmp_path: Path) -> None:
    if shutil.which("mkfs.ext4", path="/usr/sbin:/sbin") is None:
        pytest.skip("no mkfs.ext4 on this host")
    for name in ("one", "two"):
        make_scratch_disk(tmp_path / name, disk_mib)
    one = tmp_path / "one"
    assert one.stat().st_size == disk_mib * MIB
    assert occupied_bytes(one) < MIB
    assert_same_bytes(one, tmp_path / "two")
    subprocess.run(["/usr/sbin/e2fsck", "-fn", str(one)], check=True, capture_output=True)
    with pytest.raises(FileExistsError):
        make_scratch_disk(one, disk_mib)


def test_the_plan_has_no_journal_and_zeroes_nothing() -> None:
    argv = scratch.mkfs_argv(Path("/disk"), 64)
    assert "^has_journal" in argv[argv.index("-O") + 1]
    assert "assume_storage_prezeroed=1" in argv[argv.index("-E") + 1]
    assert argv[-2:] == ["/disk", "64M"]


@pytest.mark.parametrize("reflink", [True, False])
def test_a_copy_has_the_data_and_the_holes(reflink: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not reflink:
        monkeypatch.setattr(scratch, "FICLONE", 0)  # an ioctl no file system knows
    source = sparse(tmp_path / "source")
    copy_disk(source, tmp_path / "copy")
    copy = tmp_path / "copy"
    assert copy.read_bytes() == source.read_bytes()
    assert occupied_bytes(copy) <= occupied_bytes(source) + 64 * 1024
    assert copy.stat().st_mode & 0o777 == 0o600


def test_a_disk_of_holes_only_is_copied(tmp_path: Path) -> None:
    with (tmp_path / "source").open("wb") as file:
        file.truncate(8 * MIB)
    copy_disk(tmp_path / "source", tmp_path / "copy")
    assert (tmp_path / "copy").stat().st_size == 8 * MIB
    assert occupied_bytes(tmp_path / "copy") == 0


def test_a_copy_replaces_nothing(tmp_path: Path) -> None:
    source = sparse(tmp_path / "source")
    (tmp_path / "copy").write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        copy_disk(source, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"mine"


def test_a_copy_to_another_file_system(tmp_path: Path) -> None:
    other = Path("/dev/shm")
    if not other.is_dir() or other.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("no second file system")
    source, target = sparse(tmp_path / "source"), other / f"casemate-test-{os.getpid()}"
    try:
        copy_disk(source, target)
        assert target.read_bytes() == source.read_bytes()
        assert occupied_bytes(target) <= MIB
    finally:
        target.unlink(missing_ok=True)


def test_a_full_disk_leaves_no_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file size limit stands in for the full disk: the kernel refuses the write half-way."""
    source = sparse(tmp_path / "source")
    code = (
        "import resource, signal, sys; from pathlib import Path; from casemate.images import copy_disk\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))\n"
        "try: copy_disk(Path(sys.argv[1]), Path(sys.argv[2]))\n"
        "except OSError as error: print(error.errno)\n"
    )
    done = subprocess.run(
        [os.sys.executable, "-c", code, str(source), str(tmp_path / "copy")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "copy").exists()
    assert HostFull.code == "host-full"
