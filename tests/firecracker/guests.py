"""The guests in ``guests/``, compiled, and the board through which a test talks to one that runs."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
SOURCE = Path(__file__).parent / "guests"
GCC = (
    *("gcc", "-nostdinc", "-nostdlib", "-static", "-ffreestanding", "-O1", "-fno-pie", "-no-pie"),
    *("-mno-sse", "-mno-red-zone", "-fno-stack-protector", "-fno-asynchronous-unwind-tables", "-fcf-protection=none"),
    *("-Wall", "-Wextra", "-Werror", "-Wno-unused-function"),
    "-Wl,-Ttext-segment=0x200000,--build-id=none,-n,-e,_start",
)
BOARD = 0x300000  # guests/guest.h says the same
BOARD_LAYOUT = struct.Struct("<8sQIII")
MAGIC = b"CASEMATE"
MAILBOX = BOARD + 16
OBEYED = BOARD + 24
PLENTY = 0x400000
PAGE = 4096
OBEYED_S = 20.0
STILL_S = 0.5


class Word(IntEnum):
    """What can be put into a guest's mailbox."""

    SAY = 1
    TOUCH = 2
    FLOOD = 3
    HALT = 4
    RESET = 5
    FAULT = 6
    NOWHERE = 7
    CLOSE = 32
    DROP = 33
    LISTEN = 34
    CALL = 35


@dataclass(frozen=True)
class Board:
    """What a guest has on its board at one moment."""

    counter: int
    mailbox: int
    argument: int
    obeyed: int

    @classmethod
    def of(cls, raw: bytes) -> Board:
        magic, *values = BOARD_LAYOUT.unpack(raw)
        assert magic == MAGIC, f"no board here: {raw.hex()}"
        return cls(*values)


def compile_guests(folder: Path) -> Path:
    """All of them into *folder*: ``folder/"counter"`` and so on."""
    if shutil.which("gcc") is None:
        raise FileNotFoundError("no gcc: `make test` installs it where there is apt")
    for source in SOURCE.glob("*.c"):
        subprocess.run([*GCC, str(source), "-o", str(folder / source.stem)], check=True)
    return folder


def board_in_file(memory: Path) -> Board:
    """As it is in a snapshot's memory."""
    with memory.open("rb") as file:
        file.seek(BOARD)
        return Board.of(file.read(BOARD_LAYOUT.size))


class GuestMemory:
    """The memory of a guest that runs in the VMM *pid*, by the kernel's /proc; the guest has to have made its board."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._start = wait_for(self._find, f"a board in the memory of {pid}")

    def _find(self) -> int | None:
        for line in Path(f"/proc/{self.pid}/maps").read_text().splitlines():
            start, end = (int(word, 16) for word in line.split()[0].split("-"))
            if line.split()[1].startswith("rw") and end - start > BOARD:
                try:
                    if self._read(start + BOARD, len(MAGIC)) == MAGIC:
                        return start
                except OSError:  # a mapping with nothing behind it
                    continue
        return None

    def _read(self, address: int, length: int) -> bytes:
        with open(f"/proc/{self.pid}/mem", "rb", buffering=0) as memory:
            return os.pread(memory.fileno(), length, address)

    def read(self, address: int, length: int) -> bytes:
        """At the guest's own physical *address*."""
        return self._read(self._start + address, length)

    def write(self, address: int, piece: bytes) -> None:
        with open(f"/proc/{self.pid}/mem", "r+b", buffering=0) as memory:
            os.pwrite(memory.fileno(), piece, self._start + address)

    def board(self) -> Board:
        return Board.of(self.read(BOARD, BOARD_LAYOUT.size))

    def tell(self, word: Word, argument: int = 0) -> None:
        """Put *word* into the mailbox."""
        self.write(MAILBOX + 4, struct.pack("<I", argument))
        self.write(MAILBOX, struct.pack("<I", word))

    def obey(self, word: Word, argument: int = 0) -> None:
        """Put *word* into the mailbox and wait until the guest has done it."""
        before = self.board().obeyed
        self.tell(word, argument)
        wait_for(lambda: self.board().obeyed > before, f"the guest to obey {word.name}")

    def runs(self) -> bool:
        """Whether the counter goes up; one whose vCPU others keep from running for so long would look as if stopped."""
        return self._counts_within(OBEYED_S)

    def stands_still(self) -> bool:
        return not self._counts_within(STILL_S)

    def _counts_within(self, limit_s: float) -> bool:
        before = self.board().counter
        deadline = time.monotonic() + limit_s
        while time.monotonic() < deadline:
            if self.board().counter != before:
                return True
            time.sleep(0.005)
        return False


def wait_for(look: Callable[[], T | None], what: str, limit_s: float = OBEYED_S) -> T:
    """What *look* finds at last."""
    deadline = time.monotonic() + limit_s
    while not (found := look()):
        assert time.monotonic() < deadline, f"waited {limit_s} s for {what}"
        time.sleep(0.002)
    return found
