"""PID 1 waits for every process, but takes each status to the one who asked for it.

A catch-all waitpid would steal statuses. So: peek at a dead child without taking it (WNOWAIT), then take
exactly that one and call its owner. An orphan without an owner is taken and forgotten.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable

from casemate.guest.reactor import Reactor

Exited = Callable[[int], None]


class Reaper:
    """Owns SIGCHLD and the statuses of all children. *only_adopted*: leave strangers alone (in tests)."""

    def __init__(self, reactor: Reactor, *, only_adopted: bool = False) -> None:
        self._reactor = reactor
        self._owners: dict[int, Exited] = {}
        self._only_adopted = only_adopted
        self._wake, self._woken = socket.socketpair()
        self._wake.setblocking(False)
        self._woken.setblocking(False)
        signal.signal(signal.SIGCHLD, _only_wake)
        signal.set_wakeup_fd(self._woken.fileno(), warn_on_full_buffer=False)
        reactor.watch(self._wake.fileno(), self._on_signal)

    def adopt(self, pid: int, exited: Exited) -> None:
        """Call *exited* with the wait status when our child *pid* has ended.

        Raises: ChildProcessError when the kernel says *pid* is no child of ours.
        """
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        self._owners[pid] = exited
        self._reactor.call_later(0, self.reap)  # it may have ended before its signal had an owner

    def close(self) -> None:
        """Give SIGCHLD back."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._reactor.unwatch(self._wake.fileno())
        self._wake.close()
        self._woken.close()

    def _on_signal(self) -> None:
        try:
            self._wake.recv(4096)
        except BlockingIOError:
            return
        self.reap()

    def reap(self) -> None:
        """Take every status there is."""
        if self._only_adopted:
            for pid in list(self._owners):
                if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                    self._take(pid)
            return
        while True:
            try:
                dead = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if dead is None:
                return
            self._take(dead.si_pid)

    def _take(self, pid: int) -> None:
        owner = self._owners.pop(pid, None)
        _, status = os.waitpid(pid, 0)
        if owner is not None:
            owner(status)


def _only_wake(_number: int, _frame: object) -> None:
    """Python needs a handler for the wake-up descriptor to be written to."""
