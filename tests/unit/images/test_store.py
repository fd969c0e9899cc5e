"""The store: what has a digest for a name is whole, whoever races, dies or meddles."""

from __future__ import annotations

import hashlib
import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from casemate.errors import HostFull, ImageBroken, NotFound
from casemate.images import Store, digest_of

CONTENT = b"an artifact" * 1000
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "artifacts")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(CONTENT)
    return path


def leftovers(store: Store) -> list[Path]:
    return list(store.root.glob(".new-*"))


def break_open(store: Store, content: bytes = b"something else") -> None:
    path = store.path(DIGEST)
    path.chmod(0o644)
    path.write_bytes(content)


def test_an_artifact_is_read_only_and_named_by_its_digest(store: Store, source: Path) -> None:
    assert store.add(source) == DIGEST
    assert store.path(DIGEST).read_bytes() == CONTENT
    assert stat.S_IMODE(store.path(DIGEST).stat().st_mode) == 0o444
    assert store.digests() == [DIGEST]
    assert leftovers(store) == []


def test_the_same_content_keeps_its_inode(store: Store, source: Path) -> None:
    store.add(source)
    first = store.path(DIGEST).stat()
    store.add(source)
    assert store.path(DIGEST).stat().st_ino == first.st_ino
    assert first.st_nlink == 1


def test_a_file_can_move_in(store: Store, source: Path) -> None:
    inode = source.stat().st_ino
    assert store.take(source) == DIGEST
    assert not source.exists()
    assert store.path(DIGEST).stat().st_ino == inode


@pytest.mark.parametrize("digest", ["", "0" * 64, "../../etc/passwd", ".lock", DIGEST.upper()])
def test_what_is_not_there_is_not_found(store: Store, source: Path, digest: str) -> None:
    store.add(source)
    assert not store.has(digest)
    with pytest.raises(NotFound):
        store.path(digest)


def test_a_block_that_fails_leaves_nothing(store: Store) -> None:
    def fail(path: Path) -> None:
        path.write_bytes(CONTENT)
        raise RuntimeError

    with pytest.raises(RuntimeError), store.new() as pending:
        fail(pending.path)
    assert store.digests() == []
    assert leftovers(store) == []


def test_a_full_disk_is_a_typed_error(store: Store) -> None:
    with pytest.raises(HostFull, match="space"), store.new(), open("/dev/full", "wb", buffering=0) as full:
        full.write(b"x")
    assert leftovers(store) == []


def test_a_writer_that_is_killed_leaves_nothing_that_is_used(store: Store) -> None:
    code = (
        "import sys, time; from pathlib import Path; from casemate.images import Store\n"
        "with Store(Path(sys.argv[1])).new() as pending:\n"
        "    pending.path.write_bytes(b'half'); print('written', flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(store.root)], stdout=subprocess.PIPE) as writer:
        assert writer.stdout
        assert writer.stdout.readline() == b"written\n"
        assert store.sweep() == 0, "a live writer's file was swept"
        assert len(leftovers(store)) == 1
        writer.send_signal(signal.SIGKILL)
    assert store.digests() == []
    Store(store.root)
    assert leftovers(store) == []


def test_many_writers_of_one_content_make_one_artifact(store: Store, source: Path) -> None:
    start, found = threading.Barrier(8), []

    def write() -> None:
        start.wait(10)
        found.append(Store(store.root).add(source))

    threads = [threading.Thread(target=write) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert found == [DIGEST] * 8
    assert store.digests() == [DIGEST]
    assert store.path(DIGEST).stat().st_nlink == 1
    assert leftovers(store) == []


def test_a_changed_artifact_is_found_out_and_replaced(store: Store, source: Path) -> None:
    store.add(source)
    os.close(store.open(DIGEST))
    break_open(store)
    with pytest.raises(ImageBroken) as caught:
        store.open(DIGEST)
    assert caught.value.evidence["expected"] == DIGEST
    with pytest.raises(ImageBroken):
        store.verify(DIGEST)
    assert store.add(source) == DIGEST
    store.verify(DIGEST)
    assert leftovers(store) == []


def test_an_inode_that_was_hashed_is_recognised_until_it_changes(store: Store, source: Path) -> None:
    store.add(source)
    remembered = store.root / ".verified" / DIGEST
    os.close(Store(store.root).open(DIGEST))
    line = remembered.read_text()
    store.path(DIGEST).touch()
    os.close(store.open(DIGEST))
    assert remembered.read_text() != line, "a touched file was not hashed again"
    remembered.write_text(line.replace(line.split()[0], "another-boot"))
    os.close(store.open(DIGEST))
    assert "another-boot" not in remembered.read_text()


def test_recognised_means_not_read(store: Store, source: Path) -> None:
    """The same inode with the same times is taken at its word: that is what makes a start cheap."""
    store.add(source)
    identity = (store.root / ".verified" / DIGEST).read_text()
    break_open(store)
    fd = os.open(store.path(DIGEST), os.O_RDONLY)
    forged = identity.split()[0] + " " + " ".join(_identity(fd)) + "\n"
    os.close(fd)
    (store.root / ".verified" / DIGEST).write_text(forged)
    os.close(store.open(DIGEST))
    with pytest.raises(ImageBroken):
        store.verify(DIGEST)


def _identity(fd: int) -> list[str]:
    s = os.fstat(fd)
    return [str(n) for n in (s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns)]


def test_the_digest_of_a_descriptor_does_not_move_it(source: Path) -> None:
    with source.open("rb") as file:
        file.read(5)
        assert digest_of(file.fileno()) == DIGEST == digest_of(source)
        assert os.lseek(file.fileno(), 0, os.SEEK_CUR) != 0


def test_removing_forgets(store: Store, source: Path) -> None:
    store.add(source)
    store.remove(DIGEST)
    store.remove(DIGEST)
    store.remove("../source")
    assert store.digests() == []
    assert source.exists()


MIB = 1 << 20


@pytest.mark.parametrize(
    ("size", "data"),
    [
        (0, []),
        (5, [(0, 5)]),
        (3 * MIB + 17, []),
        (4 * MIB, [(0, 1)]),
        (4 * MIB, [(4 * MIB - 1, 1)]),
        (9 * MIB + 3, [(MIB - 7, 11), (3 * MIB, MIB), (6 * MIB + 4096, 3 * MIB - 4096)]),
    ],
)
def test_the_digest_of_a_file_with_holes_is_that_of_its_bytes(
    tmp_path: Path, size: int, data: list[tuple[int, int]]
) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        for start, length in data:
            file.seek(start)
            file.write(os.urandom(length))
        file.truncate(size)
    assert digest_of(path) == hashlib.sha256(path.read_bytes()).hexdigest()
    with path.open("rb") as file:
        assert digest_of(file.fileno()) == digest_of(path)
        assert file.tell() == 0


def test_a_hole_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.write(b"x")
        file.truncate(512 * MIB)
    if path.stat().st_blocks * 512 > MIB:
        pytest.skip("this file system keeps no holes")
    read: list[int] = []
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, length, at: (read.append(at), pread(fd, length, at))[1])
    digest_of(path)
    assert len(read) <= 3
