"""Execs: programs of the user's as resources that outlive the channels that look at them.

With a terminal there is one stream, its pipe ends are the terminal's master.

An exec is gone through once: started, ended (its leader was reaped), settled (its output is complete:
the pipes are closed, or background children hold them and LINGER_S have passed). Each stream has a ring.
While somebody is attached nothing is lost: a full ring stops the reading, a full pipe the program. While
nobody is, the oldest bytes go and the program never waits.
"""

from __future__ import annotations

import fcntl
import os
import signal
import struct
import termios
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Any, Protocol

from casemate.errors import StateConflict
from casemate.guest.cgroups import NO_USAGE, Group
from casemate.guest.reactor import Reactor, Timer
from casemate.guest.ring import Ring

STDOUT, STDERR = 1, 2
READ_BYTES = 65_536
READS_PER_TURN = 4
LINGER_S = 0.2


class Viewer(Protocol):
    """Who is attached. `cursors` hold the next offset it needs of each stream."""

    cursors: dict[int, int]

    def on_progress(self) -> None:
        """There is more output, or the exec has settled."""


class Stdin:
    """The writing end of the program's standard input; owns it."""

    def __init__(self, reactor: Reactor, fd: int) -> None:
        self._reactor, self._fd = reactor, fd
        self._queue: deque[tuple[memoryview, Callable[[], None]]] = deque()
        self._eof = False

    def feed(self, data: bytes, used: Callable[[], None]) -> None:
        """Write *data* in turn and call *used* then; also when nobody reads any more."""
        if self._fd < 0 or self._eof:
            used()
            return
        self._queue.append((memoryview(data), used))
        if len(self._queue) == 1:
            self._write()

    def end(self) -> None:
        """Close it once all that was fed is written."""
        self._eof = True
        if not self._queue:
            self.close()

    def close(self) -> None:
        if self._fd >= 0:
            self._reactor.unwatch(self._fd)
            os.close(self._fd)
            self._fd = -1
        while self._queue:
            self._queue.popleft()[1]()

    def _write(self) -> None:
        while self._queue:
            view, used = self._queue[0]
            try:
                count = os.write(self._fd, view)
            except BlockingIOError:
                self._reactor.watch_writable(self._fd, self._write)
                return
            except BrokenPipeError:
                self.close()
                return
            if count < len(view):
                self._queue[0] = (view[count:], used)
            else:
                self._queue.popleft()
                used()
        self._reactor.unwatch(self._fd)
        if self._eof:
            self.close()


class _Stream:
    __slots__ = ("fd", "owed", "reading", "ring")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.ring = Ring()
        self.reading = False
        self.owed: int | None = None  # once the leader has ended: what the pipe held at that moment


class Exec:
    """One program. Owns its reading pipe ends, its standard input and, once started, its group."""

    def __init__(
        self,
        reactor: Reactor,
        exec_id: str,
        argv: list[str],
        pipes: dict[int, int],
        stdin: Stdin | None,
        *,
        terminal: bool = False,
    ) -> None:
        self._reactor = reactor
        self.exec_id, self.argv, self.terminal = exec_id, argv, terminal
        self.stdin = stdin
        self.on_disconnect = "kill"
        self.timeout_s: float | None = None
        self.due_at: float | None = None  # when that is over, by the monotonic clock
        self.pid = 0
        self.end: dict[str, Any] | None = None
        self.settled = False
        self.viewers: list[Viewer] = []
        self._streams = {number: _Stream(fd) for number, fd in pipes.items()}
        self._group: Group | None = None
        self._begun_at = monotonic()
        self._timer: Timer | None = None
        self._timed_out = False
        self._killed = False

    # ------------------------------------------------------------- life cycle

    def started(self, pid: int, group: Group) -> None:
        self.pid, self._group = pid, group
        for number in self._streams:
            self._read_on(number)
        if self._killed:
            self.kill()
        if self.timeout_s is not None:
            self.due_at = monotonic() + self.timeout_s
            self._timer = self._reactor.call_later(self.timeout_s, self._time_out)

    def exited(self, status: int) -> None:
        """The leader was reaped."""
        group = self._group
        usage = group.usage() if group is not None else NO_USAGE
        if group is not None:
            group.close()
        if self._timer is not None:
            self._timer.cancel()
        self.end = {
            "event": "end",
            "end": self._how(status, usage.oom_kills),
            "duration_ms": round((monotonic() - self._begun_at) * 1000, 1),
            "cpu_ms": usage.cpu_ms,
            "peak_memory_mib": usage.peak_memory_mib,
        }
        if self.stdin is not None:
            self.stdin.close()
        for number, stream in self._streams.items():
            if stream.fd >= 0:
                stream.owed = _readable_bytes(stream.fd)
                self._read(number)
        if not self._settle():
            self._reactor.call_later(LINGER_S, self._stop_lingering)

    def kill(self) -> None:
        """SIGKILL to everything of the exec's; to its leader also by its pid, for root can leave the group."""
        self._killed = True
        if self._group is not None:
            self._group.kill()
            if self.end is None:
                os.kill(self.pid, signal.SIGKILL)  # not reaped yet, so the number is still its

    def signal(self, number: int) -> None:
        """To the exec's process group. Raises StateConflict when there is none any more."""
        try:
            if self.end is not None or not self.pid:
                raise ProcessLookupError
            os.killpg(self.pid, number)
        except ProcessLookupError as error:
            raise StateConflict(f"exec {self.exec_id} has ended") from error

    @property
    def master(self) -> int:
        """Its terminal's master, to be set only; -1 when there is none, or none any more."""
        return self._streams[STDOUT].fd if self.terminal else -1

    def abandon(self) -> None:
        """Its channel was reset undetached: kill it if that was its starter's wish and nobody else looks on."""
        if self.on_disconnect == "kill" and not self.viewers and self.end is None:
            self.kill()

    def close(self) -> None:
        """Let go of what it still holds. A program that runs goes on without readers."""
        if self.stdin is not None:
            self.stdin.close()
        for stream in self._streams.values():
            self._close_pipe(stream)

    def listed(self) -> dict[str, Any]:
        return {
            "exec_id": self.exec_id,
            "pid": self.pid,
            "argv": [word[:200] for word in self.argv[:20]],
            "running": self.end is None,
            "terminal": self.terminal,
            "end": self.end["end"] if self.end is not None else None,
        }

    def _how(self, status: int, oom_kills: int) -> dict[str, Any]:
        if self._timed_out:
            return {"kind": "timed-out", "after_s": self.timeout_s}
        code = os.waitstatus_to_exitcode(status)
        if oom_kills and code in (-signal.SIGKILL, 128 + signal.SIGKILL):
            return {"kind": "out-of-memory"}
        if code < 0:
            return {"kind": "signaled", "signal": -code}
        return {"kind": "exited", "code": code}

    def _time_out(self) -> None:
        self._timed_out = True
        self.kill()

    # ----------------------------------------------------------------- output

    def attach(self, viewer: Viewer) -> None:
        """From now on nothing at or after the viewer's cursors is dropped."""
        self.viewers.append(viewer)

    def detach(self, viewer: Viewer) -> None:
        if viewer in self.viewers:
            self.viewers.remove(viewer)
            for number in self._streams:
                self._read_on(number)

    def ring(self, number: int) -> Ring:
        return self._streams[number].ring

    def taken(self, number: int) -> None:
        """A viewer's cursor has moved: there may be room again."""
        self._read_on(number)

    def _room(self, number: int, ring: Ring) -> bool:
        needed_from = ring.end
        for viewer in self.viewers:
            needed_from = min(needed_from, viewer.cursors[number])
        ring.trim(needed_from)
        return not ring.is_full() or needed_from >= ring.end

    def _read_on(self, number: int) -> None:
        stream = self._streams[number]
        if stream.fd >= 0 and not stream.reading and self._room(number, stream.ring):
            stream.reading = True
            self._reactor.watch(stream.fd, lambda: self._readable(number))

    def _readable(self, number: int) -> None:
        self._read(number)
        if self.end is not None and not self.settled:
            self._settle()

    def _read(self, number: int) -> None:
        stream = self._streams[number]
        ring = stream.ring
        for _ in range(READS_PER_TURN):
            if not self._room(number, ring):
                if stream.reading:
                    stream.reading = False
                    self._reactor.unwatch(stream.fd)
                return
            try:
                data = os.read(stream.fd, READ_BYTES)
            except BlockingIOError:
                return
            except OSError:  # EIO: nobody has the terminal open any more
                data = b""
            if not data:
                self._close_pipe(stream)
                return
            ring.append(data)
            if stream.owed is not None:
                stream.owed = max(stream.owed - len(data), 0)
            for viewer in tuple(self.viewers):
                viewer.on_progress()
            if len(data) < READ_BYTES // 2 and self.end is None:
                return

    def _close_pipe(self, stream: _Stream) -> None:
        if stream.fd >= 0:
            if stream.reading:
                self._reactor.unwatch(stream.fd)
            os.close(stream.fd)
            stream.fd, stream.reading = -1, False

    def _settle(self) -> bool:
        """All output is here when every writer has gone."""
        if any(stream.fd >= 0 for stream in self._streams.values()):
            return False
        self._settled()
        return True

    def _stop_lingering(self) -> None:
        """Background children hold a pipe: what the program itself wrote is enough; theirs goes on to the ring."""
        if self.settled:
            return
        if any(stream.fd >= 0 and stream.owed for stream in self._streams.values()):
            self._reactor.call_later(LINGER_S, self._stop_lingering)  # a slow reader holds us up
        else:
            self._settled()

    def _settled(self) -> None:
        self.settled = True
        for viewer in tuple(self.viewers):
            viewer.on_progress()


def _readable_bytes(fd: int) -> int:
    return int(struct.unpack("i", fcntl.ioctl(fd, termios.FIONREAD, b"\0\0\0\0"))[0])
