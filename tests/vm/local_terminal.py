"""A terminal of the test's own around a program, and what is written on it: enough to be a user at a keyboard."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager


class Keyboard:
    def __init__(self, master: int, process: subprocess.Popen[bytes]) -> None:
        self.master, self.process = master, process
        self.screen = b""  # all that ever appeared
        self._seen = 0

    def type(self, keys: bytes) -> None:
        while keys:
            keys = keys[os.write(self.master, keys) :]

    def wait_for(self, text: bytes, limit_s: float = 60) -> bytes:
        """What appeared up to and with *text*, since the last wait."""
        until = time.monotonic() + limit_s
        while (at := self.screen.find(text, self._seen)) < 0:
            assert self._read(until - time.monotonic()), f"{text!r} never came; there is {self.screen[-2000:]!r}"
        begin, self._seen = self._seen, at + len(text)
        return self.screen[begin : self._seen]

    def wait_end(self, limit_s: float = 60) -> int:
        """Its exit status; the screen is read meanwhile, and to its end."""
        until = time.monotonic() + limit_s
        while self.process.poll() is None:
            assert time.monotonic() < until, f"it did not end; there is {self.screen[-2000:]!r}"
            self._read(0.05)
        while self._read(0.05):
            pass
        return self.process.returncode

    def resize(self, rows: int, cols: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("4H", rows, cols, 0, 0))

    def settings(self) -> list[object]:
        return termios.tcgetattr(self.master)

    def _read(self, limit_s: float) -> bool:
        if limit_s <= 0 or not select.select([self.master], [], [], limit_s)[0]:
            return False
        try:
            piece = os.read(self.master, 65536)
        except OSError:  # EIO: the program has let go of it
            return False
        self.screen += piece
        return bool(piece)


@contextmanager
def at_terminal(words: Sequence[str], *, rows: int = 30, cols: int = 90) -> Iterator[Keyboard]:
    """``casemate`` on a terminal that it controls; killed in the end whatever happens."""
    master, slave = pty.openpty()
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("4H", rows, cols, 0, 0))
    become = "import os, sys, fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
    process = subprocess.Popen(
        [sys.executable, "-c", become, sys.executable, "-m", "casemate.cli", *words],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
        env=os.environ | {"TERM": "xterm-256color"},
    )
    keyboard = Keyboard(master, process)
    try:
        yield keyboard
    finally:
        process.kill()
        process.wait()
        os.close(slave)
        os.close(master)
