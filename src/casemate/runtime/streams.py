"""Descriptors 1 and 2 of a context, written to in an order that the agent can see.

The agent reads two pipes and a socket, and serves the socket first. The order among the three is kept by holding unread
bytes in one of them only: who turns from one to another waits until the one before was read empty. What children and
C code write to the pipes is not made to wait.
"""

import fcntl
import io
import os
import sys
import termios
from time import monotonic, sleep  # the cells' own `time` is theirs to patch
from typing import Any, Dict, Optional, Tuple

from . import surroundings

SOCKET = 0
_NAMES = {1: "stdout", 2: "stderr"}
_OTHERS: Dict[int, Tuple[int, ...]] = {SOCKET: (1, 2), 1: (2,), 2: (1,)}  # the socket is always served first
_KEPT_FROM = 64  # low numbers are the user's
_NOTHING = b"\0\0\0\0"
_FLOODED_AFTER_S = 1.0
_POLL_S = (0.00002, 0.002)


class Streams:
    """The pipes, and sys.stdout and sys.stderr over them. A cell may close or replace what it likes."""

    def __init__(self) -> None:
        self._kept = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _KEPT_FROM) for fd in (0, 1, 2)]
        self._stdin = sys.stdin
        self._last = SOCKET
        self._turning = False
        self._ours: Dict[int, Any] = {}
        for number in _NAMES:
            self._rebuild(number)

    def restore(self) -> None:
        """Mend what is broken: a closed descriptor, a closed stream, None. What was replaced stays replaced."""
        for fd, kept in enumerate(self._kept):
            try:
                fcntl.fcntl(fd, fcntl.F_GETFD)
            except OSError:
                os.dup2(kept, fd)
        for number, stream in self._ours.items():
            current = getattr(sys, _NAMES[number], None)
            if current is None or (current is stream and _is_closed(stream)):
                self._rebuild(number)
        stdin = getattr(sys, "stdin", None)
        if stdin is None or (stdin is self._stdin and _is_closed(stdin)):
            self._renew_stdin()

    def give_stdin(self, fd: Optional[int]) -> None:
        """*fd* is descriptor 0 from now on; None: what it was at first, where nothing is to be read."""
        os.dup2(self._kept[0] if fd is None else fd, 0)
        if getattr(sys, "stdin", None) in (None, self._stdin):
            self._renew_stdin()

    def flush(self) -> None:
        """Into the pipes with what Python still holds."""
        for name in _NAMES.values():
            self._flush(getattr(sys, name, None))

    def turn_to(self, place: int) -> None:
        """Call it before *place* (SOCKET, 1 or 2) is written to. Waits for the reader of the others."""
        if not self._turning:  # a flush comes here again, and may change what was last
            self._turning = True
            try:
                for other in _OTHERS[place]:
                    self._flush(self._ours[other])
            finally:
                self._turning = False
        if place == self._last and place != SOCKET:
            return
        for other in _OTHERS[place]:
            if self._unread(other) != _NOTHING:
                self._wait_until_read(other)
        self._last = place

    def _flush(self, stream: Any) -> None:
        try:
            stream.flush()
        except KeyboardInterrupt:
            raise
        except BaseException:
            return  # the cell closed it, or put anything in its place

    def _unread(self, number: int) -> bytes:
        return fcntl.ioctl(self._kept[number], termios.FIONREAD, _NOTHING)

    def _wait_until_read(self, number: int) -> None:
        """As long as the agent reads nothing, which is back-pressure; but not for ever on what somebody floods."""
        pause_s, longest_s = _POLL_S
        begun = monotonic()
        before = now = self._unread(number)
        moved = False
        while now != _NOTHING and not (moved and monotonic() - begun > _FLOODED_AFTER_S):
            sleep(pause_s)
            pause_s = min(pause_s * 2, longest_s)
            before, now = now, self._unread(number)
            moved = moved or now != before

    def _renew_stdin(self) -> None:
        self._stdin = sys.stdin = sys.__stdin__ = surroundings.stream(0)  # type: ignore[misc]

    def _rebuild(self, number: int) -> None:
        stream = surroundings.stream(number, raw=_Raw(number, self))
        setattr(sys, _NAMES[number], stream)
        setattr(sys, "__%s__" % _NAMES[number], stream)
        self._ours[number] = stream


def _is_closed(stream: Any) -> bool:
    try:
        return bool(stream.closed)
    except ValueError:  # its buffer was detached
        return True


class _Raw(io.FileIO):
    def __init__(self, number: int, streams: Streams) -> None:
        super().__init__(number, "w", closefd=False)
        self._number, self._streams = number, streams

    def write(self, data: Any) -> int:
        self._streams.turn_to(self._number)
        return super().write(data)
