"""This terminal, lent to a program in a guest: raw while it runs, as it was before whatever happens."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import termios
import threading
import tty
from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any

from casemate.cli.attach import PIECE_BYTES, STDIN, STDOUT, exit_status, write_all
from casemate.errors import CasemateError

if TYPE_CHECKING:
    from casemate.sdk._sync.terminals import Terminal

TERM = "xterm-256color"
ROWS, COLS = 24, 80


def about() -> dict[str, Any]:
    """Size and kind of this terminal, as ``commands.terminal`` takes them; the usual ones where there is none."""
    rows, cols = _size() or (ROWS, COLS)
    return {"rows": rows, "cols": cols, "term": os.environ.get("TERM", TERM) if os.isatty(STDOUT) else "dumb"}


def carry(terminal: Terminal) -> int:
    """Keys in, screen out, until the program ends; the status to exit with. Raises ReaderLeft, what the SDK raises."""
    with _raw(), _following_size(terminal):
        # a daemon thread: it may sit in a read of a terminal that nobody types at
        threading.Thread(target=_type, args=(terminal,), daemon=True).start()
        for piece in terminal.output():
            write_all(STDOUT, piece)
    if terminal.end is None:
        raise CasemateError("the daemon did not say how the program ended")
    return exit_status(terminal.end.end)


def _type(terminal: Terminal) -> None:
    poller = select.poll()
    poller.register(STDIN, select.POLLIN)
    while True:
        poller.poll()
        try:
            keys = os.read(STDIN, PIECE_BYTES)
        except BlockingIOError:
            continue
        except OSError:  # EIO: our terminal is gone
            keys = b""
        if not keys:
            terminal.end_input()
            return
        terminal.feed(keys)


@contextlib.contextmanager
def _raw() -> Iterator[None]:
    """Every key goes through. Put back also when we are asked to end; SIGKILL leaves it raw, as with any program."""
    if not os.isatty(STDIN):
        yield
        return
    before = termios.tcgetattr(STDIN)
    handlers = {number: signal.signal(number, _leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        tty.setraw(STDIN, termios.TCSADRAIN)
        yield
    finally:
        termios.tcsetattr(STDIN, termios.TCSADRAIN, before)
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _leave(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


@contextlib.contextmanager
def _following_size(terminal: Terminal) -> Iterator[None]:
    changed = threading.Event()
    over = False

    def follow() -> None:
        """A thread: a signal handler may come while the socket's lock is held."""
        while changed.wait() and not over:
            changed.clear()
            if size := _size():
                terminal.resize(*size)

    before = signal.signal(signal.SIGWINCH, lambda number, frame: changed.set())
    threading.Thread(target=follow, daemon=True).start()
    try:
        yield
    finally:
        over = True
        changed.set()
        signal.signal(signal.SIGWINCH, before)


def _size() -> tuple[int, int] | None:
    for descriptor in (STDOUT, STDIN):
        with contextlib.suppress(OSError):
            found = os.get_terminal_size(descriptor)
            if found.lines and found.columns:
                return found.lines, found.columns
    return None
