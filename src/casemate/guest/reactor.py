"""The agent's one loop: epoll, timers, no threads, no asyncio.

Small on purpose. In a fresh emulated clone every new instruction is translated first, so what runs
between a request and its answer is kept short. Callbacks never block; one that raises is reported on the
console and the loop goes on, because PID 1 must not die of a bug in one corner.
"""

from __future__ import annotations

import heapq
import select
import sys
import traceback
from collections.abc import Callable
from time import monotonic

Callback = Callable[[], None]
_COMPACT_AT = 256
_GONE_FDS = (2, 9)  # ENOENT, EBADF: closed before it was unwatched, epoll has forgotten it by itself


class Timer:
    __slots__ = ("callback",)

    def __init__(self, callback: Callback) -> None:
        self.callback: Callback | None = callback

    def cancel(self) -> None:
        self.callback = None


class Reactor:
    """Owns the epoll descriptor only. *after_turn* runs once per round, when all that was ready was served."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callback] = {}
        self._timers: list[tuple[float, int, Timer]] = []
        self._serial = 0
        self._compact_at = _COMPACT_AT
        self._stopping = False
        self.after_turn: Callback | None = None

    def watch(self, fd: int, callback: Callback) -> None:
        """Call *callback* whenever *fd* is readable or hung up, until unwatch."""
        self._add(fd, callback, select.EPOLLIN)

    def watch_writable(self, fd: int, callback: Callback) -> None:
        self._add(fd, callback, select.EPOLLOUT)

    def watch_edges(self, fd: int, callback: Callback, *, writable: bool = False) -> None:
        """Call *callback* when *fd* becomes readable, hung up or, if asked for, writable: it uses up what there is."""
        events = select.EPOLLIN | select.EPOLLET | (select.EPOLLOUT if writable else 0)
        if fd in self._callbacks:
            self._epoll.modify(fd, events)
        else:
            self._epoll.register(fd, events)
        self._callbacks[fd] = callback

    def unwatch(self, fd: int) -> None:
        """Forget *fd*; does nothing when it is not watched."""
        if self._callbacks.pop(fd, None) is not None:
            self._unregister(fd)

    def call_later(self, delay_s: float, callback: Callback) -> Timer:
        self._serial += 1
        timer = Timer(callback)
        heapq.heappush(self._timers, (monotonic() + delay_s, self._serial, timer))
        if len(self._timers) > self._compact_at:
            self._drop_cancelled()
        return timer

    def run(self) -> None:
        """Serve until stop()."""
        self._stopping = False
        while not self._stopping:
            self.turn(None)

    def turn(self, limit_s: float | None) -> None:
        """One round: wait for something (at most *limit_s*), serve all of it."""
        callbacks = self._callbacks
        for fd, _ in self._epoll.poll(self._wait_s(limit_s)):
            callback = callbacks.get(fd)
            if callback is not None:
                self._call(callback)
        if self._timers:
            self._run_due()
        if self.after_turn is not None:
            self._call(self.after_turn)

    def stop(self) -> None:
        self._stopping = True

    def close(self) -> None:
        self._epoll.close()
        self._callbacks.clear()
        self._timers.clear()

    def _drop_cancelled(self) -> None:
        """Time-outs of hours that were not needed would stay for hours."""
        self._timers[:] = [entry for entry in self._timers if entry[2].callback is not None]
        heapq.heapify(self._timers)
        self._compact_at = max(2 * len(self._timers), _COMPACT_AT)

    def _add(self, fd: int, callback: Callback, events: int) -> None:
        if fd in self._callbacks:
            self.unwatch(fd)
        self._epoll.register(fd, events)
        self._callbacks[fd] = callback

    def _unregister(self, fd: int) -> None:
        try:
            self._epoll.unregister(fd)
        except OSError as error:
            if error.errno not in _GONE_FDS:
                raise
        except ValueError:  # a closed socket says -1
            return

    def _wait_s(self, limit_s: float | None) -> float | None:
        timers = self._timers
        while timers and timers[0][2].callback is None:
            heapq.heappop(timers)
        if not timers:
            return limit_s
        wait_s = max(timers[0][0] - monotonic(), 0.0)
        return wait_s if limit_s is None else min(wait_s, limit_s)

    def _run_due(self) -> None:
        now = monotonic()
        timers = self._timers
        while timers and timers[0][0] <= now:
            callback = heapq.heappop(timers)[2].callback
            if callback is not None:
                self._call(callback)

    def _call(self, callback: Callback) -> None:
        try:
            callback()
        except Exception:  # whatever it was, the other channels and PID 1 go on
            traceback.print_exc(file=sys.stderr)
