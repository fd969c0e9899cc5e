"""A zygote and its client on this machine: no cgroups, no root, no VM."""

from __future__ import annotations

import heapq
import os
import select
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from casemate.guest.cgroups import NO_USAGE, Usage
from casemate.guest.zygote import Identity, Job, Zygote

RUNTIME = Path(__file__).parents[3] / "src" / "casemate" / "runtime"
LIMIT_S = 30.0
PRELOAD = ("wave", "json", "random", "tempfile", "uuid", "ssl", "numpy", "pandas", "matplotlib.pyplot", "IPython")


@dataclass(order=True)
class Alarm:
    at: float
    serial: int
    callback: Callable[[], None] = field(compare=False)
    cancelled: bool = field(default=False, compare=False)

    def cancel(self) -> None:
        self.cancelled = True


class PollLoop:
    """The smallest loop that does what the client asks of the agent's."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self._watched: dict[int, Callable[[], None]] = {}
        self._alarms: list[Alarm] = []
        self._serial = count()

    def watch(self, fd: int, callback: Callable[[], None]) -> None:
        self._watched[fd] = callback
        self._poll.register(fd, select.POLLIN)

    def unwatch(self, fd: int) -> None:
        if self._watched.pop(fd, None) is not None:
            self._poll.unregister(fd)

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Alarm:
        alarm = Alarm(time.monotonic() + delay_s, next(self._serial), callback)
        heapq.heappush(self._alarms, alarm)
        return alarm

    def run_until(self, condition: Callable[[], bool], limit_s: float = LIMIT_S) -> None:
        deadline = time.monotonic() + limit_s
        while not condition():
            now = time.monotonic()
            assert now < deadline, "nothing happened"
            while self._alarms and self._alarms[0].at <= now:
                alarm = heapq.heappop(self._alarms)
                if not alarm.cancelled:
                    alarm.callback()
            wake_at = self._alarms[0].at if self._alarms else deadline
            if condition():
                return
            for fd, _ in self._poll.poll(max(0.0, min(wake_at, deadline) - time.monotonic()) * 1000 + 1):
                if fd in self._watched:
                    self._watched[fd]()


class PidfdReaper:
    """Waits for adopted children; this process is made a subreaper, so orphans come to it."""

    def __init__(self, loop: PollLoop) -> None:
        self._loop = loop
        self.adopted: dict[int, int] = {}

    def adopt(self, pid: int, exited: Callable[[int], None]) -> None:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        pidfd = os.pidfd_open(pid)
        self.adopted[pid] = pidfd

        def ended() -> None:
            if os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                return  # told in the same round of an older descriptor with this number
            self._loop.unwatch(pidfd)
            os.close(pidfd)
            del self.adopted[pid]
            exited(os.waitpid(pid, 0)[1])

        self._loop.watch(pidfd, ended)


class ProcessGroup:
    """Stands where a cgroup does: every child is the leader of a session of its own."""

    def __init__(self) -> None:
        self.pid = 0

    def add(self, pid: int) -> None:
        self.pid = pid

    def pids(self) -> list[int]:
        return [self.pid] if self.pid else []

    def kill(self) -> None:
        if self.pid:
            try:
                os.killpg(self.pid, signal.SIGKILL)
            except ProcessLookupError:
                self.pid = 0

    def share_fate(self) -> None: ...

    def usage(self) -> Usage:
        return NO_USAGE

    def close(self) -> None:
        pass


@dataclass
class Outcome:
    stdout: bytes
    stderr: bytes
    returncode: int


class Bench:
    """A zygote with everything it stands on."""

    def __init__(self, python: str, preload: Sequence[str] = PRELOAD, spares: int = 2) -> None:
        self.python = python
        self.loop = PollLoop()
        self.reaper = PidfdReaper(self.loop)
        self.failures: list[str] = []
        self.zygote = Zygote(
            self.loop,
            self.reaper,
            ProcessGroup,
            python=python,
            runtime=str(RUNTIME),
            preload=preload,
            spares=spares,
            refill_after_s=0.0,
        )
        ready: list[bool] = []
        self.zygote.start(lambda: ready.append(True), self.failures.append)
        self.loop.run_until(lambda: bool(ready or self.failures))
        assert not self.failures

    def env(self, **more: str) -> dict[str, str]:
        path = f"{Path(self.python).parent}:/usr/bin:/bin"
        return {"PATH": path, "LANG": "C.UTF-8", "HOME": "/nonexistent", **more}

    def run(
        self,
        argv: Sequence[str],
        cwd: Path,
        env: dict[str, str],
        stdin: bytes = b"",
        identity: Identity | None = None,
    ) -> Outcome:
        """`python3 argv…` through the zygote."""
        parts: dict[int, list[bytes]] = {1: [], 2: []}
        status: list[int] = []
        refused: list[str] = []
        source = os.memfd_create("stdin")
        os.write(source, stdin)
        os.lseek(source, 0, os.SEEK_SET)
        pipes = {stream: os.pipe() for stream in parts}
        job = Job(argv, env, str(cwd), identity)
        stdio = (source, pipes[1][1], pipes[2][1])
        child = None

        def begun() -> bool:
            nonlocal child
            child = self.zygote.run_script(
                job, stdio, started=lambda: None, refused=refused.append, exited=status.append
            )
            if child is None:
                self.loop.call_later(0.01, lambda: None)
            return child is not None

        self.loop.run_until(begun)
        for fd in stdio:
            os.close(fd)
        for stream, (fd, _) in pipes.items():
            self.loop.watch(fd, lambda fd=fd, stream=stream: self._drain(fd, parts[stream]))  # type: ignore[misc]
        self.loop.run_until(lambda: bool(status or refused) and all(b"" in got for got in parts.values()))
        assert not refused, refused
        return Outcome(b"".join(parts[1]), b"".join(parts[2]), os.waitstatus_to_exitcode(status[0]))

    def _drain(self, fd: int, parts: list[bytes]) -> None:
        parts.append(os.read(fd, 65536))
        if not parts[-1]:
            self.loop.unwatch(fd)
            os.close(fd)

    def close(self) -> None:
        self.zygote.stop()
        self.loop.run_until(lambda: not self.reaper.adopted)
