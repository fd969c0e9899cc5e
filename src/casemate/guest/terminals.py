"""A pseudo-terminal for a program: its master is ours, its slave becomes the program's three descriptors."""

from __future__ import annotations

import fcntl
import os
import struct
import termios
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from casemate.errors import InvalidSpec
from casemate.guest.execs import Stdin
from casemate.guest.zygote import Job

_IUTF8 = 0o40000  # one backspace deletes one character, also where that is several bytes
_END_OF_INPUT = b"\x04"
_TTY_GROUP = 5  # Debian's, and what devpts is mounted with
_LARGEST = 0xFFFF


@dataclass(frozen=True, slots=True)
class Window:
    rows: int
    cols: int


def window_of(params: Mapping[str, Any]) -> Window:
    """Raises InvalidSpec."""
    rows, cols = params.get("rows"), params.get("cols")
    for number in (rows, cols):
        if type(number) is not int or not 0 < number <= _LARGEST:
            raise InvalidSpec(f"rows and cols are whole numbers from 1 to {_LARGEST}")
    return Window(rows, cols)  # type: ignore[arg-type]


def open_terminal(job: Job, window: Window) -> tuple[int, int]:
    """Master and slave; both are the caller's. Raises OSError."""
    master, slave = os.openpty()
    try:
        os.set_blocking(master, False)
        settings = termios.tcgetattr(slave)
        settings[0] |= _IUTF8
        termios.tcsetattr(slave, termios.TCSANOW, settings)
        resize(master, window)
        if job.identity is not None:
            os.fchown(slave, job.identity.uid, _TTY_GROUP)
    except OSError:
        os.close(master)
        os.close(slave)
        raise
    return master, slave


def resize(master: int, window: Window) -> None:
    """The kernel tells the foreground programs (SIGWINCH). Raises OSError."""
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("4H", window.rows, window.cols, 0, 0))


class Keyboard(Stdin):
    """What is typed. Its end is a key like the others: a terminal has no end of input."""

    def end(self) -> None:
        self.feed(_END_OF_INPUT, _nothing)


def _nothing() -> None:
    """No credit is given back for what nobody sent."""
