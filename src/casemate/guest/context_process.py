"""The process of a context: from a waiting child to the end of its last byte.

Order: of socket, stdout and stderr an honest context leaves unread bytes in one only, so the socket is served before
each read of a pipe, and what both pipes hold (FIONREAD) when it has said its end, or died, is delivered before that.
What is written between cells stays in the pipes and is the next cell's. A background child that holds a pipe open holds
up nobody.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import signal
import stat
import struct
import termios
from collections.abc import Callable
from contextlib import suppress
from itertools import islice
from typing import Any, Protocol

from casemate.guest import twisters
from casemate.guest.cell_log import STDERR, STDOUT
from casemate.guest.peer import PeerGone, PeerLied
from casemate.guest.zygote import Child, Job, Loop, Zygote

SCRIPT = "cells.py"
_CHUNK = 65_536
_MESSAGES_PER_TURN = 32
_PIPE_BYTES = 1 << 20  # no pipe is larger, unless root has made it so
_DEATH_LIMIT_S = 0.5
RESEED_SIGNAL = 51  # as runtime/reseed.py has it
_RESEEDED_AT_MOST = 256  # processes of one context
_LAST_WORDS = 512  # messages of a dead one; a child of its may go on for ever
_F_GET_SEALS = 1034  # answered by memory files alone: to read one never waits. Source: linux/fcntl.h
_libc = ctypes.CDLL(None, use_errno=True)


class Owner(Protocol):
    """What the process tells, and asks before it reads on."""

    def has_room(self) -> bool: ...

    def takes_output(self) -> bool:
        """Whether a cell runs."""

    def on_message(self, message: dict[str, Any], files: list[int]) -> None:
        """One message, and at most one file with it: taken out of *files* when it is kept. Raises PeerLied."""

    def on_output(self, stream: int, output: bytes) -> None: ...

    def on_lie(self) -> None:
        """It has to be killed."""

    def on_dead(self) -> None:
        """It was reaped, and all it had sent by its socket was told."""


class ContextProcess:
    """Owns the child it was given, its pipes and, to the end, its group."""

    def __init__(self, loop: Loop, owner: Owner, child: Child) -> None:
        self._loop, self._owner, self.child = loop, owner, child
        self.pid = child.pid
        self.status: int | None = None  # once it was reaped
        self.lie: str | None = None
        self.was_killed = self.is_reseeded_by_signal = False
        self.twisters = 0  # where they are told in its memory
        self._pipes: dict[int, int] = {}
        self._watched: set[int] = set()
        self._reading = True
        self._serving = self._hung_up = self._told_death = False
        self._last_words = _LAST_WORDS

    def start(self, zygote: Zygote, job: Job, language: str) -> None:
        """Give it its job. Raises OSError, and puts the child back: no descriptors are left, or the job is too big."""
        opened: list[int] = []
        try:
            null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
            opened.append(null)
            for stream in (STDOUT, STDERR):
                self._pipes[stream], theirs = _own_pipe(job)
                opened.append(theirs)
            sent = zygote.order(self.child, job, (null, opened[1], opened[2]), self._on_exit, context=language)
        except OSError:
            zygote.put_back(self.child)
            self._close_pipes()
            raise
        finally:
            for fd in opened:
                os.close(fd)
        if not sent:
            self._close_pipes()
            raise OSError(errno.E2BIG, os.strerror(errno.E2BIG))
        self.child.group.share_fate()
        self._watch(self.child.peer.fileno(), self._on_socket)

    def send(self, message: dict[str, Any], fds: list[int]) -> None:
        """One that does not listen is ended."""
        if not self.child.peer.send(message, fds):
            self._end_soon("does not read what it is sent")

    def kill(self) -> None:
        """SIGKILL to all that is in its group; to itself also by its pid, for root can leave the group."""
        self.was_killed = True
        self.child.group.kill()
        if self.status is None:
            os.kill(self.pid, signal.SIGKILL)  # not reaped yet, so the number is still its

    def interrupt(self) -> bool:
        """SIGINT to its process group; False: it ignores that just now, as between cells."""
        if self.status is not None:
            return True  # its number may be another's by now
        try:
            if _is_in_mask(self.pid, b"SigIgn:", signal.SIGINT):
                return False
            os.killpg(self.pid, signal.SIGINT)
        except ProcessLookupError:
            pass  # its death is being reported
        return True

    def reseed(self) -> None:
        """Have its generators seeded anew as soon as it runs, with those of the processes it has forked.

        Called while all of them are frozen. What draws before the signal's handler has come finds its twister filled
        anew already. One who does not catch the signal would die of it, so the kernel is asked; another program that
        uses the same number is nobody of ours.
        """
        if self.status is not None:
            return
        program = _program_of(self.pid)
        for pid in islice(self.child.group.pids(), _RESEEDED_AT_MOST):
            if _program_of(pid) != program:
                continue
            if self.twisters:
                twisters.refill(pid, self.twisters)
            if self.is_reseeded_by_signal and self._takes_signal(pid):
                with suppress(ProcessLookupError):
                    _signal_main_thread(pid, RESEED_SIGNAL)

    def _takes_signal(self, pid: int) -> bool:
        """A child that blocks it may be between vfork and exec, where it forgets its handlers and then lets it in."""
        return _is_in_mask(pid, b"SigCgt:", RESEED_SIGNAL) and (
            pid == self.pid or not _is_in_mask(pid, b"SigBlk:", RESEED_SIGNAL)
        )

    def oom_kills(self) -> int:
        return self.child.group.usage().oom_kills

    # ------------------------------------------------------------------ reading

    def go_on(self) -> None:
        """There is room, or a cell that takes output: read on."""
        if self._reading and len(self._watched) > len(self._pipes):
            return
        self._reading = True
        self._watch(self.child.peer.fileno(), self._on_socket)
        for stream in self._pipes:
            self._watch_pipe(stream)

    def drain(self) -> None:
        """Deliver what the pipes hold now, whether there is room or not: no reader holds up an end."""
        for stream, fd in self._pipes.items():
            owed = min(_readable_bytes(fd), _PIPE_BYTES)
            while owed > 0 and (output := _read(fd, min(owed, _CHUNK))):
                owed -= len(output)
                self._owner.on_output(stream, output)

    def close(self) -> None:
        """It was reaped, or is given up: what is left of it is killed and its end is nobody's any more."""
        self.child.exited = _ignore
        self.was_killed = True
        self.child.group.kill()  # what the context started does not outlive it
        for fd in tuple(self._watched):
            self._unwatch(fd)
        self._close_pipes()
        self.child.peer.close()
        self.child.group.close()

    def _on_socket(self) -> None:
        """Tell what came, at most a share of it; whatever else waits for its turn has it."""
        if self._serving:
            return
        self._serving = True
        files: list[int] = []
        try:
            for _ in range(_MESSAGES_PER_TURN):
                if self._hung_up or not self._has_room():
                    break
                received = self.child.peer.receive(files)
                if received is None:
                    if self.status is not None:  # a child of its may hold the socket: no end of file comes
                        self._hang_up()
                    break
                self._owner.on_message(received[0], files)
                _close(files)
                if self.status is None:
                    if not self._owner.takes_output():
                        break  # that was an end, mostly; more would wake us
                    continue
                self._last_words -= 1
                if not self._last_words:
                    self._hang_up()
        except PeerGone:
            self._hang_up()
            self._end_soon("closed its socket to the agent")
        except PeerLied as lie:
            self._hang_up()
            self._end_as_lying(f"sent {lie}")
        finally:
            self._serving = False
            _close(files)
        if self.status is not None and self._hung_up and not self._told_death:
            self._told_death = True
            self._owner.on_dead()

    def _on_pipe(self, stream: int) -> None:
        self._on_socket()
        fd = self._pipes.get(stream)
        if fd is None or fd not in self._watched:
            return
        if not self._owner.takes_output():
            self._unwatch(fd)
        elif self._has_room():
            output = _read(fd, _CHUNK)
            if output:
                self._owner.on_output(stream, output)
            elif output is not None:
                self._close_pipe(stream)

    def _has_room(self) -> bool:
        if self.status is not None or self._owner.has_room():
            return True  # what a dead one has said is not more than the kernel's buffers hold
        if self._reading:
            self._reading = False
            for fd in tuple(self._watched):
                self._unwatch(fd)
        return False

    def _on_exit(self, status: int) -> None:
        self.status = status
        self.go_on()
        self._on_socket()

    def _hang_up(self) -> None:
        self._hung_up = True
        self._unwatch(self.child.peer.fileno())

    def _end_soon(self, what: str) -> None:
        """Mostly it is dead already, which is about to be told."""
        if self.status is None:
            self._loop.call_later(_DEATH_LIMIT_S, lambda: self._end_as_lying(what))

    def _end_as_lying(self, what: str) -> None:
        if self.status is None and not self.was_killed:
            self.lie = what
            self._owner.on_lie()

    def _watch(self, fd: int, callback: Callable[[], None]) -> None:
        if fd not in self._watched and not (self._hung_up and fd == self.child.peer.fileno()):
            self._watched.add(fd)
            self._loop.watch(fd, callback)

    def _watch_pipe(self, stream: int) -> None:
        self._watch(self._pipes[stream], lambda: self._on_pipe(stream))

    def _unwatch(self, fd: int) -> None:
        if fd in self._watched:
            self._watched.discard(fd)
            self._loop.unwatch(fd)

    def _close_pipe(self, stream: int) -> None:
        fd = self._pipes.pop(stream)
        self._unwatch(fd)
        os.close(fd)

    def _close_pipes(self) -> None:
        for stream in tuple(self._pipes):
            self._close_pipe(stream)


def size_of_memory_file(fd: int) -> int:
    """Raises PeerLied for what is no memory file."""
    found = os.fstat(fd)
    try:
        if not stat.S_ISREG(found.st_mode) or fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_WRONLY:
            raise PeerLied("a descriptor that is no file to read")
        fcntl.fcntl(fd, _F_GET_SEALS)
    except OSError as error:
        raise PeerLied("a file that is not in memory") from error
    return found.st_size


def _own_pipe(job: Job) -> tuple[int, int]:
    """A pipe whose writing end the user may open again by name, as /dev/stdout."""
    ours, theirs = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(ours, False)
    if job.identity is not None:
        os.fchown(theirs, job.identity.uid, job.identity.gid)
    return ours, theirs


def _read(fd: int, most: int) -> bytes | None:
    try:
        return os.read(fd, most)
    except BlockingIOError:
        return None


def _readable_bytes(fd: int) -> int:
    return int(struct.unpack("i", fcntl.ioctl(fd, termios.FIONREAD, b"\0\0\0\0"))[0])


def _is_in_mask(pid: int, mask: bytes, number: int) -> bool:
    """Whether signal *number* is in that line of the process' status; False when it is gone."""
    try:
        with open(f"/proc/{pid}/status", "rb") as status:  # its name in there need not be text
            found = next((line.split()[1] for line in status if line.startswith(mask)), b"0")
    except (FileNotFoundError, ProcessLookupError):
        return False
    return bool(int(found, 16) >> (number - 1) & 1)


def _signal_main_thread(pid: int, number: int) -> None:
    """As kill(2), to the one thread that runs handlers: of those that leave the freezer any may take what is for all.

    The main thread would then wait on, and the handler with it. Source: kernel/signal.c, complete_signal
    """
    if _libc.tgkill(pid, pid, number) != 0:
        raise OSError(ctypes.get_errno(), "tgkill")


def _program_of(pid: int) -> str | None:
    """None: it is gone, or ends."""
    try:
        return os.readlink(f"/proc/{pid}/exe")
    except (FileNotFoundError, ProcessLookupError):
        return None


def _close(files: list[int]) -> None:
    while files:
        os.close(files.pop())


def _ignore(_status: int) -> None:
    """It is nobody's any more."""
