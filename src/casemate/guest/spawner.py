"""The agent's side of the spawner: children that wait in their cgroups before anybody asks.

agent ──control──▶ spawner          "one more, here are its socket and its group"
  │                   └ clone ──────▶ child of the agent's, as CLONE_PARENT makes it
  └──────socket of that child───────▶ says its pid, waits, gets one job, becomes the program
"""

from __future__ import annotations

import errno
import marshal
import os
import socket
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from casemate.guest import spawned
from casemate.guest.cgroups import Group, Groups
from casemate.guest.reactor import Reactor, Timer
from casemate.guest.reaper import Reaper
from casemate.guest.zygote import Job

SPARES = 3
QUIET_S = 0.05  # so long nobody has asked for a program: time to make a spare
RESPAWN_AFTER_S = 0.2
Refused = Callable[[int, int], None]


@dataclass(slots=True, eq=False)
class Launch:
    """One job on its way. Exactly one of *started* and *refused* (errno, stage) is called; *exited* after started."""

    job: Job
    stdio: tuple[int, int, int]
    started: Callable[[int, Group], None]
    refused: Refused
    exited: Callable[[int], None]


@dataclass(slots=True, eq=False)
class _Child:
    sock: socket.socket
    group: Group
    pid: int = 0
    launch: Launch | None = None
    running: bool = False


class Spawner:
    """Owns the spawner process and the children that wait; a child with a running program is its launch's."""

    def __init__(self, reactor: Reactor, reaper: Reaper, groups: Groups, spares: int = SPARES) -> None:
        self._reactor, self._reaper, self._groups, self._spares = reactor, reaper, groups, spares
        self._control: socket.socket | None = None
        self._waiting: deque[_Child] = deque()
        self._coming: set[_Child] = set()
        self._queue: deque[Launch] = deque()
        self._refill: Timer | None = None
        self._ready: Callable[[], None] | None = None
        self._closed = False
        self.pid = 0

    def start(self, ready: Callable[[], None] | None = None) -> None:
        """Fork the spawner and its spares; *ready* is called when they wait."""
        self._ready = ready
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        pid = os.fork()
        if pid == 0:
            try:
                ours.close()
                spawned.serve(theirs)
            finally:
                os._exit(1)
        theirs.close()
        self.pid, self._control = pid, ours
        self._reaper.adopt(pid, lambda _status: self._on_spawner_gone())
        self.refill()

    def launch(self, launch: Launch) -> None:
        """Start a job, at once when a child waits. The descriptors of its stdio must stay open till it started."""
        self._queue.append(launch)
        self._serve_queue()

    @property
    def is_stocked(self) -> bool:
        """Whether every spare waits."""
        return len(self._waiting) >= self._spares

    def refill(self) -> None:
        """Have every spare made now, not when it is quiet."""
        for _ in range(self._spares + len(self._queue) - len(self._waiting) - len(self._coming)):
            if not self._ask():
                return

    def withdraw(self, launch: Launch) -> bool:
        """Take back a job no child has got yet. False: it has begun."""
        if launch in self._queue:
            self._queue.remove(launch)
            return True
        return False

    def close(self) -> None:
        """End the spawner and the waiting children."""
        self._closed = True
        self._drop_control()
        for child in [*self._waiting, *self._coming]:
            self._discard(child)
        self._waiting.clear()
        self._coming.clear()

    # ------------------------------------------------------------------ jobs

    def _serve_queue(self) -> None:
        while self._queue and self._waiting:
            self._give(self._waiting.popleft(), self._queue.popleft())
        for _ in range(len(self._queue) - len(self._coming)):
            self._ask()
        self._refill_later()

    def _give(self, child: _Child, launch: Launch) -> None:
        job, who = launch.job, launch.job.identity
        uid, gid, groups = (who.uid, who.gid, list(who.groups)) if who else (None, None, None)
        packet = marshal.dumps((list(job.argv), dict(job.env), job.cwd, uid, gid, groups, job.tty))
        if len(packet) > spawned.MESSAGE_LIMIT:
            self._waiting.append(child)
            launch.refused(errno.E2BIG, spawned.STAGE_SETUP)
            return
        try:
            spawned.send(child.sock, packet, list(launch.stdio))
        except OSError:  # it died while it waited; its exit is on the way
            self._queue.appendleft(launch)
            return
        child.launch = launch

    def _on_child(self, child: _Child) -> None:
        """The pid of a new one, a refusal, or the end of the socket: the program runs."""
        try:
            message = child.sock.recv(64)
        except BlockingIOError:
            return
        except ConnectionError:
            message = b""
        if not child.pid:
            self._on_waiting(child, message)
        elif child.launch is not None:
            self._on_answer(child, child.launch, message)

    def _on_answer(self, child: _Child, launch: Launch, message: bytes) -> None:
        self._hang_up(child)
        if message:
            number, stage = map(int, message.split())
            child.launch = None
            launch.refused(number, stage)
            return  # its group goes with its exit
        child.running = True
        launch.started(child.pid, child.group)

    def _on_exit(self, child: _Child, status: int) -> None:
        launch = child.launch
        if launch is not None and not child.running:
            self._on_child(child)  # its word may be in the socket still
        if child.running:
            assert launch is not None
            launch.exited(status)
            return
        if child in self._waiting:
            self._waiting.remove(child)
        self._discard(child)
        if child.launch is not None:
            child.launch.refused(errno.EAGAIN, spawned.STAGE_SETUP)  # it was killed in between
        self._serve_queue()

    # ---------------------------------------------------------------- spares

    def _refill_later(self) -> None:
        """One at a time, and none while programs are asked for: there is often one vCPU only, and it is theirs."""
        if self._refill is not None:
            self._refill.cancel()
        lacking = len(self._waiting) + len(self._coming) < self._spares + len(self._queue)
        self._refill = self._reactor.call_later(QUIET_S, self._add_spare) if lacking else None

    def _add_spare(self) -> None:
        self._refill = None
        if not self._coming and len(self._waiting) < self._spares:
            self._ask()
        self._refill_later()

    def _ask(self) -> bool:
        if self._control is None:
            return False
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * spawned.MESSAGE_LIMIT)
        child = _Child(ours, self._groups.new())
        fds = [theirs.fileno()] + ([child.group.procs_fd] if child.group.procs_fd >= 0 else [])
        try:
            spawned.send(self._control, b"fork", fds)
        except OSError:  # full or gone: the timer or its exit brings us back
            self._discard(child)
            return False
        finally:
            theirs.close()
        self._coming.add(child)
        self._reactor.watch(ours.fileno(), lambda: self._on_child(child))
        return True

    def _on_waiting(self, child: _Child, message: bytes) -> None:
        self._coming.discard(child)
        pid = int(message) if message.isdigit() else 0
        try:
            self._reaper.adopt(pid, lambda status: self._on_exit(child, status))
        except OSError:
            pid = 0
        if not pid:  # it could not fork, or died before it could say so
            self._discard(child)
            self._refill_later()
            return
        child.pid = pid
        if child.group.procs_fd < 0:
            child.group.add(pid)
        self._waiting.append(child)
        self._serve_queue()
        if self._ready is not None and not self._coming:
            ready, self._ready = self._ready, None
            ready()

    def _on_spawner_gone(self) -> None:
        self._drop_control()
        if not self._closed:
            self._reactor.call_later(RESPAWN_AFTER_S, lambda: self.start(self._ready))

    def _drop_control(self) -> None:
        if self._control is not None:
            self._control.close()
            self._control = None

    def _hang_up(self, child: _Child) -> None:
        if child.sock.fileno() >= 0:
            self._reactor.unwatch(child.sock.fileno())
            child.sock.close()

    def _discard(self, child: _Child) -> None:
        self._hang_up(child)
        child.group.kill()
        child.group.close()
