"""The process of an engine's own, and how an engine waits for it without losing an interrupt.

It is in the context's process group, so that it gets the same SIGINT, and inherits descriptors 1 and 2.
"""

import os
import resource
import select
import signal
import socket
import subprocess
import time
from types import FrameType
from typing import Any, Dict, List, Optional, Sequence

READY_S = 120.0
_CLOSE_S = 2.0


class Interrupts:
    """While it is open a SIGINT is counted, not raised, and wakes who waits: no answer is lost halfway.

    Between two orders SIGINT is ignored; whoever calls `run` has given it a handler that raises.
    """

    def __init__(self) -> None:
        self.count = 0
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)

    def __enter__(self) -> "Interrupts":
        self.count = 0
        self._wakeup_before = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        self._handler_before = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._handler_before)
        signal.set_wakeup_fd(self._wakeup_before)
        self._drain()

    def fileno(self) -> int:
        return self._reader.fileno()

    def _note(self, number: int, frame: Optional[FrameType]) -> None:
        self.count += 1

    def _drain(self) -> None:
        try:
            while self._reader.recv(512):
                pass
        except BlockingIOError:
            pass

    def wait(self, *readers: Any, timeout_s: Optional[float] = None) -> List[Any]:
        """Which of *readers* can be read; none after *timeout_s* or an interrupt."""
        seen = self.count
        ready: List[Any] = []
        poll = select.poll()
        by_fd = {reader if isinstance(reader, int) else reader.fileno(): reader for reader in readers}
        for fd in (*by_fd, self.fileno()):
            poll.register(fd, select.POLLIN)
        until = None if timeout_s is None else time.monotonic() + timeout_s
        while not ready and self.count == seen:
            left = None if until is None else max(0.0, until - time.monotonic())
            happened = [fd for fd, _ in poll.poll(None if left is None else left * 1000)]
            if self.fileno() in happened:
                self._drain()
            ready = [by_fd[fd] for fd in happened if fd in by_fd]
            if left == 0.0:
                break
        return ready


class Companion:
    """A child process; its death can be waited for, and is made this process's own."""

    def __init__(self, argv: Sequence[str], pass_fds: Sequence[int], **where: Any) -> None:
        self.process = subprocess.Popen(argv, pass_fds=pass_fds, preexec_fn=_default_interrupt, **where)
        self.death = os.pidfd_open(self.process.pid)

    def follow(self) -> None:
        """It has died: die in the same way, so that the agent can say how."""
        leave_as(self.process.wait())

    def end(self) -> None:
        """Ask it to go, by SIGHUP as a terminal that is closed; then make it."""
        for number in (signal.SIGHUP, signal.SIGKILL):
            self.process.send_signal(number)
            try:
                self.process.wait(_CLOSE_S)
                break
            except subprocess.TimeoutExpired:
                continue
        os.close(self.death)


def leave_as(status: int) -> None:
    """End this process as another one ended: *status* as subprocess has it, negative for a signal."""
    if status >= 0:
        os._exit(status)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if -status not in (signal.SIGKILL, signal.SIGSTOP):
        signal.signal(-status, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signal.valid_signals())
    os.kill(os.getpid(), -status)
    os._exit(128 - status)  # it was one that ends nobody


def _default_interrupt() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # ignored is inherited, and a shell could never undo it


def error(name: str, value: str, traceback: str = "") -> Dict[str, Any]:
    return {"kind": "error", "name": name, "value": value, "traceback": traceback}
