"""The real Firecracker runs our guests, and these do what the other tests take for granted; as a bare script would."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from tests.firecracker.bare import run_bare
from tests.firecracker.binaries import find_binaries
from tests.firecracker.guests import PAGE, PLENTY, Word, board_in_file, wait_for

from casemate.vmm.firecracker.builds import Build

pytestmark = pytest.mark.usefixtures("no_trace")
ENDS_S = 20.0


def test_another_binary_is_not_taken(tmp_path: Path) -> None:
    assert "make test" in str(find_binaries(tmp_path))
    for name in ("firecracker", "jailer"):
        (tmp_path / name).write_bytes(b"another")
    assert "is another firecracker" in str(find_binaries(tmp_path))


def test_it_says_its_version(firecracker: Build, tmp_path: Path) -> None:
    with run_bare(firecracker.firecracker, tmp_path) as bare:
        assert bare.do("GET", "/version") == {"firecracker_version": str(firecracker.version)}


def test_it_counts_and_obeys(firecracker: Build, guests: Path, tmp_path: Path) -> None:
    with run_bare(firecracker.firecracker, tmp_path) as bare:
        bare.boot(guests / "counter")
        memory = bare.memory()
        assert memory.runs()
        memory.obey(Word.SAY, 0xCAFE1234)
        wait_for(lambda: bare.console == b"counting\ncafe1234\n", "its words")
        memory.obey(Word.TOUCH, 3)
        touched = [struct.unpack("<I", memory.read(PLENTY + n * PAGE, 4))[0] for n in range(4)]
        assert touched == [2, 3, 4, 0]


def test_paused_it_stands_still(firecracker: Build, guests: Path, tmp_path: Path) -> None:
    with run_bare(firecracker.firecracker, tmp_path) as bare:
        bare.boot(guests / "counter")
        memory = bare.memory()
        bare.pause()
        assert memory.stands_still()
        bare.unpause()
        assert memory.runs()


@pytest.mark.parametrize(
    ("word", "statuses", "logged"),
    [
        (Word.RESET, {0}, "Vmm is stopping"),
        (Word.FAULT, {0}, "Received KVM_EXIT_SHUTDOWN signal"),
        (Word.NOWHERE, {0, 1}, "Received KVM_EXIT_INTERNAL_ERROR signal"),  # which, is a race of the VMM's own threads
    ],
    ids=["reset", "fault", "nowhere"],
)
def test_its_log_says_how_it_ended_and_not_its_status(
    word: Word, statuses: set[int], logged: str, firecracker: Build, guests: Path, tmp_path: Path
) -> None:
    with run_bare(firecracker.firecracker, tmp_path) as bare:
        bare.boot(guests / "counter")
        bare.memory().tell(word)
        assert bare.process.wait(ENDS_S) in statuses
        assert logged in bare.log()


def test_halted_it_is_still_there(firecracker: Build, guests: Path, tmp_path: Path) -> None:
    with run_bare(firecracker.firecracker, tmp_path) as bare:
        bare.boot(guests / "counter")
        memory = bare.memory()
        memory.tell(Word.HALT)
        wait_for(memory.stands_still, "the vCPU to halt")
        assert bare.process.poll() is None


def test_last_words(firecracker: Build, guests: Path, tmp_path: Path) -> None:
    with run_bare(firecracker.firecracker, tmp_path) as bare:
        bare.boot(guests / "fatal")
        assert bare.process.wait(ENDS_S) == 0
        assert bare.console == b"these are my last words\n"


def test_a_flood(firecracker: Build, guests: Path, tmp_path: Path) -> None:
    with run_bare(firecracker.firecracker, tmp_path) as bare:
        bare.boot(guests / "flooder")
        wait_for(lambda: len(bare.console) > 4096, "a page of nothing")


def test_two_restores_go_ways_of_their_own(firecracker: Build, guests: Path, tmp_path: Path) -> None:
    with run_bare(firecracker.firecracker, tmp_path / "parent") as bare:
        bare.boot(guests / "counter", track_dirty_pages=True)
        bare.memory().obey(Word.TOUCH, 5)
        bare.pause()
        bare.save()
        saved = board_in_file(bare.folder / "memory")
        assert saved.obeyed == 1
    state, file = bare.folder / "state", bare.folder / "memory"
    with (
        run_bare(firecracker.firecracker, tmp_path / "a") as a,
        run_bare(firecracker.firecracker, tmp_path / "b") as b,
    ):
        for clone in (a, b):
            clone.load(state, file, enable_diff_snapshots=True)
        assert a.memory().board() == b.memory().board() == saved
        for clone in (a, b):
            clone.unpause()
        a.memory().obey(Word.TOUCH, 100)
        assert b.memory().runs()
        assert (a.memory().board().obeyed, b.memory().board().obeyed) == (2, 1)
        a.pause()
        a.save("Diff")
        assert board_in_file(a.folder / "memory").obeyed == 2
        written = (a.folder / "memory").stat().st_blocks * 512
        assert 100 * PAGE <= written < 200 * PAGE
    assert board_in_file(file) == saved


def test_what_it_hears_comes_back(firecracker: Build, guests: Path, tmp_path: Path) -> None:
    with run_bare(firecracker.firecracker, tmp_path) as bare:
        bare.boot(guests / "vsock", vsock=True)
        with bare.connect(b"CONNECT 1024\n") as connection, connection.makefile("rb") as heard:
            assert heard.readline().startswith(b"OK ")
            for length in (1, 7, 4096, 10_000):
                said = bytes(n * n % 251 for n in range(length))
                connection.sendall(said)
                assert heard.read(length) == said
            bare.memory().obey(Word.CLOSE)
            assert heard.read() == b""
