"""The real Firecracker runs our guests, and these do what the other tests take for granted; as a bare script would."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from tests.firecracker.bare import run_bare
from tests.firecracker.binaries import Binaries
from tests.firecracker.guests import PAGE, PLENTY, Word, wait_for

pytestmark = pytest.mark.usefixtures("no_trace")


def test_it_says_its_version(firecracker: Binaries, tmp_path: Path) -> None:
    with run_bare(firecracker.firecracker, tmp_path) as bare:
        assert bare.do("GET", "/version") == {"firecracker_version": firecracker.version}


def test_it_counts_and_obeys(firecracker: Binaries, guests: Path, tmp_path: Path) -> None:
    with run_bare(firecracker.firecracker, tmp_path) as bare:
        bare.boot(guests / "counter")
        memory = bare.memory()
        assert memory.runs()
        memory.obey(Word.SAY, 0xCAFE1234)
        wait_for(lambda: bare.console == b"counting\ncafe1234\n", "its words")
        memory.obey(Word.TOUCH, 3)
        touched = [struct.unpack("<I", memory.read(PLENTY + n * PAGE, 4))[0] for n in range(4)]
        assert touched == [2, 3, 4, 0]


def test_paused_it_stands_still(firecracker: Binaries, guests: Path, tmp_path: Path) -> None:
    with run_bare(firecracker.firecracker, tmp_path) as bare:
        bare.boot(guests / "counter")
        memory = bare.memory()
        bare.pause()
        assert not memory.runs()
        bare.unpause()
        assert memory.runs()
