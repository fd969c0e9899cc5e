"""The agent's end of the default context: one warm child, its pipes, its cells in order.

A cell that overruns gets SIGINT and, GRACE_S later, its whole cgroup is killed; the next cell then starts a
new context. Output is delivered before the end: an end message (or the death of the process) comes
after the writes, so what the pipes hold at that moment (FIONREAD) is what is left to deliver.
"""

from __future__ import annotations

import fcntl
import os
import signal
import struct
import termios
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from casemate.guest.peer import PeerGone, PeerLied
from casemate.guest.zygote import Child, Job, Loop, Timer, Zygote

GRACE_S = 2.0
START_LIMIT_S = 20.0
QUEUE_LIMIT = 64
CODE_LIMIT = 16 * 1024 * 1024
_CHUNK = 64 * 1024
_TEXT_LIMIT = 48_000
_RETRY_S = 0.02


@dataclass(slots=True, eq=False)
class Cell:
    """One piece of code, waiting or running. `pause` and `resume` carry the channel's flow control."""

    owner: Interpreter
    code: bytes
    surroundings: Job
    timeout_s: float | None
    output: Callable[[int, bytes], None]
    ended: Callable[[dict[str, Any]], None]
    paused: bool = False
    timed_out: bool = False
    begun_at: float = 0.0
    timer: Timer | None = None

    def pause(self) -> None:
        """Read no more output; the context's writes block when its pipe is full."""
        self.paused = True
        self.owner.flow_changed(self)

    def resume(self) -> None:
        self.paused = False
        self.owner.flow_changed(self)

    def cancel(self) -> None:
        """End the cell as a time-out does; `ended` is still called."""
        self.owner.cancel(self)


@dataclass(slots=True, eq=False)
class _Context:
    child: Child
    pipes: dict[int, int]  # stream → our end
    left: dict[int, int] | None = None  # stream → bytes still to deliver before the end
    end: dict[str, Any] | None = None
    begun: bool = False
    gone: bool = False
    watched: set[int] = field(default_factory=set)


class Interpreter:
    """The default context of this sandbox; at most one process, started by the first cell."""

    def __init__(self, loop: Loop, zygote: Zygote) -> None:
        self._loop, self._zygote = loop, zygote
        self._queue: deque[Cell] = deque()
        self._cell: Cell | None = None
        self._context: _Context | None = None
        self._serial = 0
        self._reseed_due = False
        self._start_by = 0.0

    def run(
        self,
        code: bytes,
        surroundings: Job,
        *,
        timeout_s: float | None,
        output: Callable[[int, bytes], None],
        ended: Callable[[dict[str, Any]], None],
    ) -> Cell | None:
        """Run *code* after the cells before it. None: too many wait already, or it is over CODE_LIMIT.

        *surroundings* (its argv is ignored) start the context when none is alive. *output* gets
        (1 or 2, bytes); *ended*, after the last output, the body of the `end` message:
        ``{"end": {...}, "text": str | None, "duration_ms": int}``, small enough for one frame.
        """
        if len(self._queue) >= QUEUE_LIMIT or len(code) > CODE_LIMIT:
            return None
        cell = Cell(self, code, surroundings, timeout_s, output, ended)
        self._queue.append(cell)
        self._loop.call_later(0, self._next)
        return cell

    @property
    def cells(self) -> int:
        """How many run or wait to."""
        return len(self._queue) + (self._cell is not None)

    def reseed(self) -> None:
        """A living context draws fresh randomness before its next cell (jobs bring their own)."""
        self._reseed_due = self._context is not None

    def stop(self) -> None:
        """Kill the context; a running cell ends as died."""
        if self._context is not None:
            self._context.child.group.kill()

    def cancel(self, cell: Cell) -> None:
        if cell in self._queue:
            self._queue.remove(cell)
            self._loop.call_later(0, lambda: self._report(cell, {"kind": "died", "reason": "cancelled"}))
        elif cell is self._cell:
            self._interrupt(cell)

    def flow_changed(self, cell: Cell) -> None:
        if cell is self._cell and self._context is not None:
            self._watch_pipes(self._context)

    # ----------------------------------------------------------------- cells

    def _next(self) -> None:
        if self._cell is not None or not self._queue:
            return
        if self._context is None and not self._start_context(self._queue[0].surroundings):
            return
        assert self._context is not None
        cell = self._cell = self._queue.popleft()
        self._serial += 1
        order: dict[str, Any] = {"op": "cell", "id": self._serial}
        if self._reseed_due:
            order["seed"] = os.urandom(64).hex()
            self._reseed_due = False
        memory = os.memfd_create("cell")
        try:
            with open(memory, "wb", closefd=False) as file:
                file.write(cell.code)
            os.lseek(memory, 0, os.SEEK_SET)
            sent = self._context.child.peer.send(order, [memory])
        finally:
            os.close(memory)
        cell.begun_at = time.monotonic()
        if cell.timeout_s is not None:
            cell.timer = self._loop.call_later(cell.timeout_s, lambda: self._time_out(cell))
        self._watch_pipes(self._context)
        if not sent:
            self._context.child.group.kill()

    def _time_out(self, cell: Cell) -> None:
        cell.timed_out = True
        self._interrupt(cell)

    def _interrupt(self, cell: Cell) -> None:
        context = self._context
        if cell is not self._cell or context is None or context.end is not None:
            return
        if cell.timer is not None:
            cell.timer.cancel()
        cell.timer = self._loop.call_later(GRACE_S, context.child.group.kill)
        self._strike(cell, context)

    def _strike(self, cell: Cell, context: _Context) -> None:
        """SIGINT, once the context has begun the cell: between cells it ignores it."""
        if cell is not self._cell or context.end is not None:
            return
        try:
            if _ignores_interrupts(context.child.pid):
                self._loop.call_later(_RETRY_S, lambda: self._strike(cell, context))
            else:
                os.killpg(context.child.pid, signal.SIGINT)
        except (FileNotFoundError, ProcessLookupError):
            return  # its death is being reported

    def _report(self, cell: Cell, end: dict[str, Any], text: str | None = None) -> None:
        if cell.timer is not None:
            cell.timer.cancel()
        if cell.timed_out:
            end, text = {"kind": "timed-out", "after_s": cell.timeout_s}, None
        duration_ms = round((time.monotonic() - cell.begun_at) * 1000) if cell.begun_at else 0
        cell.ended({"end": end, "text": text, "duration_ms": duration_ms})

    # --------------------------------------------------------------- context

    def _start_context(self, surroundings: Job) -> bool:
        """Make a waiting child the context; when none waits yet, try again shortly."""
        child = self._zygote.take()
        if child is None:
            now = time.monotonic()
            self._start_by = self._start_by or now + START_LIMIT_S
            if self._zygote.alive and now < self._start_by:
                self._loop.call_later(_RETRY_S, self._next)
            else:
                self._refuse_first("no warm Python in this sandbox")
            return False
        self._start_by = 0.0
        job = replace(surroundings, argv=[os.path.join(self._zygote.runtime, "cells.py")])
        null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        (out, out_end), (err, err_end) = _own_pipe(job), _own_pipe(job)
        context = _Context(child, {1: out, 2: err})
        try:
            sent = self._zygote.order(
                child, job, (null, out_end, err_end), lambda status: self._died(context, status), context=True
            )
        finally:
            for fd in (null, out_end, err_end):
                os.close(fd)
        if not sent:
            os.close(out)
            os.close(err)
            self._refuse_first("the environment is too big")
            return False
        self._context = context
        self._loop.watch(child.peer.fileno(), lambda: self._from_context(context))
        return True

    def _refuse_first(self, reason: str) -> None:
        self._start_by = 0.0
        cell = self._queue.popleft()
        self._loop.call_later(0, self._next)
        self._report(cell, {"kind": "died", "reason": reason})

    def _from_context(self, context: _Context) -> None:
        try:
            received = context.child.peer.receive()
            if received is None:
                return
            message = received[0]
            if message == {"event": "started"} and not context.begun:
                context.begun = True
                return
            if message.get("id") != self._serial or context.end is not None or self._cell is None:
                raise PeerLied("a message out of turn")
            self._finish(context, _checked(message))
        except (PeerGone, PeerLied):
            self._loop.unwatch(context.child.peer.fileno())
            context.child.group.kill()

    def _died(self, context: _Context, status: int) -> None:
        context.gone = True
        reason = "out of memory" if context.child.group.usage().oom_kills else _reason(status)
        context.child.group.kill()  # what the context started does not outlive it
        if self._cell is None:
            self._drop(context)
        elif context.end is None:
            self._from_context(context)  # its last word may be in the socket still
        if self._cell is not None and context.end is None:
            self._finish(context, {"end": {"kind": "died", "reason": reason}, "text": None})

    def _drop(self, context: _Context) -> None:
        if self._context is not context:
            return
        self._context = None
        for fd in context.watched:
            self._loop.unwatch(fd)
        for fd in context.pipes.values():
            os.close(fd)
        self._loop.unwatch(context.child.peer.fileno())
        context.child.peer.close()
        context.child.group.close()

    # ---------------------------------------------------------------- output

    def _watch_pipes(self, context: _Context) -> None:
        cell = self._cell
        wanted = set() if cell is None or cell.paused else set(context.pipes.values())
        for fd in context.watched - wanted:
            self._loop.unwatch(fd)
        for stream, fd in list(context.pipes.items()):
            if fd in wanted - context.watched:
                self._loop.watch(fd, lambda stream=stream: self._read(context, stream))  # type: ignore[misc]
        context.watched = wanted

    def _read(self, context: _Context, stream: int) -> None:
        cell, fd = self._cell, context.pipes.get(stream)
        if cell is None or fd is None:
            return
        limit = _CHUNK if context.left is None else min(_CHUNK, context.left.get(stream, 0))
        try:
            output = os.read(fd, limit) if limit else b""
        except BlockingIOError:
            return
        if output:
            cell.output(stream, output)
        elif limit:
            self._close_pipe(context, stream)
        if context.left is not None:
            context.left[stream] = context.left.get(stream, 0) - len(output) if output else 0
            self._settle(context)

    def _close_pipe(self, context: _Context, stream: int) -> None:
        fd = context.pipes.pop(stream)
        context.watched.discard(fd)
        self._loop.unwatch(fd)
        os.close(fd)

    def _finish(self, context: _Context, end: dict[str, Any]) -> None:
        context.end = end
        context.left = {stream: _readable_bytes(fd) for stream, fd in context.pipes.items()}
        self._settle(context)

    def _settle(self, context: _Context) -> None:
        """Report the end once the output before it was delivered."""
        cell, end = self._cell, context.end
        if cell is None or end is None or any((context.left or {}).values()):
            return
        self._cell, context.end, context.left = None, None, None
        self._watch_pipes(context)
        if context.gone:
            self._drop(context)
        self._loop.call_later(0, self._next)
        self._report(cell, end["end"], end["text"])


def _own_pipe(job: Job) -> tuple[int, int]:
    """A pipe whose writing end the user may open again by name, as /dev/stdout."""
    ours, theirs = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(ours, False)
    if job.identity is not None:
        os.fchown(theirs, job.identity.uid, job.identity.gid)
    return ours, theirs


def _readable_bytes(fd: int) -> int:
    return int(struct.unpack("i", fcntl.ioctl(fd, termios.FIONREAD, b"\0\0\0\0"))[0])


def _ignores_interrupts(pid: int) -> bool:
    with open(f"/proc/{pid}/status") as status:
        ignored = next((line.split()[1] for line in status if line.startswith("SigIgn:")), "0")
    return bool(int(ignored, 16) >> (signal.SIGINT - 1) & 1)


def _reason(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    return f"killed by signal {-code}" if code < 0 else f"exited with {code}"


def _checked(message: dict[str, Any]) -> dict[str, Any]:
    """The end message, rebuilt from what was expected of it. Raises PeerLied."""
    end, text = message.get("end"), message.get("text")
    if not isinstance(end, dict) or not (text is None or isinstance(text, str)):
        raise PeerLied("a malformed end")
    if end.get("kind") == "ok":
        return {"end": {"kind": "ok"}, "text": None if text is None else text[:_TEXT_LIMIT]}
    words = {name: end.get(name) for name in ("name", "value", "traceback")}
    if end.get("kind") != "error" or not all(isinstance(word, str) for word in words.values()):
        raise PeerLied("a malformed end")
    return {"end": {"kind": "error", **words}, "text": None}
