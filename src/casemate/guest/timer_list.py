"""When the next timer of a *user's* process is due, out of the kernel's /proc/timer_list.

Seen: nanosleep, time-outs of poll, select, epoll and futex, setitimer and alarm, POSIX timers, timerfd. Not seen:
what the kernel keeps on its coarse timer wheel (time-outs of sockets, such as SO_RCVTIMEO and TCP's own), and
CPU-time timers, which go on only while their process runs. The kernel's own (ticks, watchdogs) are left out by name.
The agent's are not there: while it reads this it is not in its poll, and its waiting children wait without limit.

The kernel writes the list in a time that grows with the square of its length (measured in an emulated guest: 1 ms for
an idle one, 35 ms with 500 timers, 0.5 s with 2,000), all of it the agent's. So a guest with too many descriptors and
processes is not looked through, and a list that was dear is not read again soon.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from time import monotonic

PATH = "/proc/timer_list"
READ_BYTES = 512 * 1024
LOOKED_THROUGH = 2000  # open files and processes: each may be a timer
DEAR_S = 0.02
REST = 20  # after a dear list none is read for so many times what that one took
_ENTRY = re.compile(rb">, ([\w.]+)(?: \[\w+\])?, S:\w+\n # expires at \d+-\d+ nsecs \[in (-?\d+) to -?\d+ nsecs\]")
_OF_PROCESSES = frozenset(
    {b"hrtimer_wakeup", b"it_real_fn", b"posix_timer_fn", b"timerfd_tmrproc", b"alarmtimer_fired"}
)


def earliest_ns(listed: bytes) -> int | None:
    """Nanoseconds from the moment of the list to the first timer in it that a process waits for."""
    due = [int(until) for function, until in _ENTRY.findall(listed) if function in _OF_PROCESSES]
    return max(min(due), 0) if due else None


class UserTimers:
    """Asks the kernel, but never for more than a small share of the agent's time."""

    def __init__(self, processes: Callable[[], int], clock: Callable[[], float] = monotonic) -> None:
        self._processes, self._clock = processes, clock
        self._rest_until = 0.0

    def next_ms(self) -> int | None:
        """Milliseconds until the first is due, 0 when that can't be told now, None when there is none."""
        began_at = self._clock()
        if began_at < self._rest_until or self._processes() + _open_files() > LOOKED_THROUGH:
            return 0
        with open(PATH, "rb", buffering=0) as file:
            listed = _read(file.read, READ_BYTES)
        took_s = self._clock() - began_at
        if took_s > DEAR_S:
            self._rest_until = began_at + REST * took_s
        if len(listed) >= READ_BYTES:
            return 0
        until_ns = earliest_ns(listed)
        return None if until_ns is None else until_ns // 1_000_000


def others_run(loadavg: str = "/proc/loadavg") -> bool:
    """Whether anything but the caller wants to run just now. Source: proc_loadavg(5)"""
    with open(loadavg) as file:
        return int(file.read().split()[3].partition("/")[0]) > 1


def _read(read: Callable[[int], bytes | None], limit: int) -> bytes:
    """The kernel gives a page or a processor's share at a time."""
    listed = bytearray()
    while len(listed) < limit and (piece := read(limit - len(listed))):
        listed += piece
    return bytes(listed)


def _open_files() -> int:
    with open("/proc/sys/fs/file-nr") as file:
        return int(file.read().split()[0])
