"""A command in a sandbox, tied to this terminal: its output, our input, Ctrl-C, and its exit status."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import stat
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING, Annotated, assert_never

import typer

from casemate.errors import CasemateError, DaemonUnavailable, NotFound, StateConflict
from casemate.sdk.results import End, Exited, OutOfMemory, Signaled, TimedOut

if TYPE_CHECKING:
    from casemate.sdk._sync.commands import Exec

STDIN, STDOUT, STDERR = 0, 1, 2
PIECE_BYTES = 65536
NULL_DEVICE = os.makedev(1, 3)
TIMED_OUT, KILLED = 124, 137  # as timeout(1) and the shells say it


class ReaderLeft(Exception):
    """Nobody reads our output any more. Not an OSError: those Typer ends in a way of its own."""


def attach(
    ref: Annotated[str, typer.Argument(metavar="SANDBOX", help="Its id, the beginning of it, or its name.")],
    exec_id: Annotated[str, typer.Argument(metavar="EXEC", help="As exec --detach printed it.")],
    offset: Annotated[int, typer.Option("--offset", metavar="N", min=0, help="Of its output, from this byte on.")] = 0,
) -> None:
    """Follow a command that runs by itself.

    What it has written so far comes first, as far as it is held: the last mebibyte of each stream. Ctrl-C reaches it;
    its exit status becomes ours.

    Example:
      casemate attach work "$(casemate exec --detach work -- make)"
    """
    from casemate.cli import screen
    from casemate.sdk import Client, Sandbox

    with Client() as client:
        commands = Sandbox.connect(ref, client=client).commands
        known = {str(found["exec_id"]): found for found in commands.list()}
        if known.get(exec_id, {}).get("terminal"):
            with commands.attach_terminal(exec_id, offset=offset) as terminal:
                status = screen.carry(terminal)
        else:
            with commands.attach(exec_id, stdout_offset=offset) as running:
                status = follow(running, feed=False, since=offset)
    raise typer.Exit(status)


def has_input() -> bool:
    """Whether our standard input has anything for the guest: not when it is closed, /dev/null, or
    a terminal whose foreground is somebody else (reading it would stop us)."""
    try:
        found = os.fstat(STDIN)
        if stat.S_ISCHR(found.st_mode) and found.st_rdev == NULL_DEVICE:
            return False
        return not os.isatty(STDIN) or os.tcgetpgrp(STDIN) == os.getpgrp()
    except OSError:
        return False


def follow(running: Exec, *, feed: bool, since: int = 0) -> int:
    """Carry everything, of its output that from *since* on, until the command's end; the status to exit with.

    Raises ReaderLeft when nobody reads our output any more, and what the SDK raises.
    """
    if feed:
        # a daemon thread: it may sit in a read of a terminal that nobody types at
        threading.Thread(target=_feed, args=(running,), daemon=True).start()
    expected = {"stdout": since, "stderr": 0}
    with _interrupts(running):
        for piece in running.output():
            if lost := piece.offset - expected[piece.stream]:
                print(f"casemate: {lost} bytes of its {piece.stream} are no longer held", file=sys.stderr)
            expected[piece.stream] = piece.offset + len(piece.data)
            write_all(STDOUT if piece.stream == "stdout" else STDERR, piece.data)
    if running.end is None:
        raise CasemateError("the daemon did not say how the command ended")
    return exit_status(running.end.end)


def exit_status(end: End) -> int:
    """As a shell would report it; what a status cannot say goes to stderr."""
    match end:
        case Exited(code):
            return code
        case Signaled(number):
            return 128 + number
        case TimedOut(after_s):
            print(f"casemate: timed out after {after_s:g} s", file=sys.stderr)
            return TIMED_OUT
        case OutOfMemory():
            print("casemate: killed, the sandbox is out of memory; give it more with --memory", file=sys.stderr)
            return KILLED
        case _:
            assert_never(end)


def write_all(descriptor: int, data: bytes) -> None:
    """All of it, however slowly it is read; that is what holds the guest back."""
    left = memoryview(data)
    while left:
        try:
            left = left[os.write(descriptor, left) :]
        except BlockingIOError:  # somebody gave us a non-blocking terminal or pipe
            poller = select.poll()
            poller.register(descriptor, select.POLLOUT)
            poller.poll()
        except BrokenPipeError as error:
            raise ReaderLeft from error


def _feed(running: Exec) -> None:
    # a broken connection is reported by who reads the output
    with contextlib.suppress(StateConflict, NotFound, DaemonUnavailable):
        running.feed(_input())


def _input() -> Iterator[bytes]:
    poller = select.poll()
    poller.register(STDIN, select.POLLIN)
    while True:
        poller.poll()
        try:
            piece = os.read(STDIN, PIECE_BYTES)
        except BlockingIOError:
            continue
        except OSError:  # EIO: our terminal is gone
            return
        if not piece:
            return
        yield piece


@contextlib.contextmanager
def _interrupts(running: Exec) -> Iterator[None]:
    """Ctrl-C is the guest's to handle; a second one kills the command."""
    names = iter(("INT",))

    def send(name: str) -> None:
        with contextlib.suppress(CasemateError):  # it has ended meanwhile, or its output says what is wrong
            running.signal(name)

    def on_interrupt(number: int, frame: FrameType | None) -> None:
        threading.Thread(target=send, args=(next(names, "KILL"),), daemon=True).start()

    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
