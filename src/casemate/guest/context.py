"""One context: its cells in order, and the process that runs them, begun anew when it has died.

A cell that overruns, or is interrupted, gets SIGINT and, its grace later, the whole cgroup of the process is killed;
then the next cell finds a new process without the old variables. Whatever becomes of the process, each cell comes to
exactly one end.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from casemate.errors import CasemateError, ExecRefused, GuestError, NotSupported
from casemate.guest import cell_ends, cell_input, surroundings
from casemate.guest.cells import Cell
from casemate.guest.context_process import RESEED_SIGNAL, SCRIPT, ContextProcess, size_of_memory_file
from casemate.guest.files import rights_of
from casemate.guest.folder_watch import FolderWatch
from casemate.guest.peer import PeerLied
from casemate.guest.zygote import Job, Loop, Timer, Zygote

START_LIMIT_S = 20.0  # for a warm child to be had
READY_LIMIT_S = 130.0  # longer than any engine waits for its own program
KILL_LIMIT_S = 5.0
_RETRY_S = 0.02
_TEXT_BYTES = 2000  # of a text it says, as JSON
_INFO_BYTES = {"language": 250, "version": 200, "cwd": 1000}  # as JSON: the list of all contexts is one message
_LIES_AFTER = 10_000  # results beyond its bound: ours stop at the bound by themselves

Ready = Callable[[], None]
Failed = Callable[[CasemateError], None]


class Context:
    """Owns its process. *ended* is called after each cell's end."""

    def __init__(
        self, loop: Loop, zygote: Zygote, context_id: str, language: str, job: Job, ended: Callable[[Cell], None]
    ) -> None:
        self._loop, self._zygote, self._ended = loop, zygote, ended
        self.context_id, self.language, self.job = context_id, language, job
        self.version = ""
        self.execution_count = 0
        self._queue: deque[Cell] = deque()
        self._cell: Cell | None = None  # the one that runs
        self._process: ContextProcess | None = None
        self._watch: FolderWatch | None = None
        self._is_ready = False  # for a cell
        self._was_ready = False  # this process, at least for a time
        self._failure: CasemateError | None = None  # why the last start failed
        self._impossible = False  # so it would be again
        self._verdict = ""  # why we have killed it
        self._is_wished = False  # that was the user's wish
        self._files: list[int] = []  # memory files of the running cell's code and stdin
        self._waiting: list[tuple[Ready, Failed]] = []  # for it to be ready
        self._serial = 0
        self._reseed_due = False
        self._env_due = False  # it was started with another environment
        self._start_by = 0.0
        self._start_timer: Timer | None = None
        self._cell_timer: Timer | None = None
        self._kill_timer: Timer | None = None

    # --------------------------------------------------------------------- acts

    def start(self, ready: Ready, failed: Failed) -> None:
        """Have a process now. Exactly one of *ready* and *failed* is called, perhaps at once."""
        self._waiting.append((ready, failed))
        if self._process is None and self._start_timer is None:
            self._start_process()
        elif self._is_ready:
            self._answer()

    def run(self, cell: Cell) -> None:
        """Run *cell* after those before it."""
        self._queue.append(cell)
        self._go_on()
        if cell in self._queue:
            cell.move(self._queue.index(cell))

    def interrupt(self, cell: Cell | None = None) -> None:
        """End *cell*, or the one that runs: SIGINT, and the end of the process when its grace is over."""
        if cell in self._queue:
            self._queue.remove(cell)  # type: ignore[arg-type]
            self._finish(cell, {"kind": "interrupted", "state_kept": True})  # type: ignore[arg-type]
            self._move_up()
        elif self._cell is not None and cell in (None, self._cell):
            self._strike(self._cell)

    def restart(self, ready: Ready, failed: Failed) -> None:
        """Begin anew without the variables; the running cell ends, those that wait run afterwards. As `start`."""
        self._impossible = False
        self._execute("the context was restarted", wished=True)
        self.start(ready, failed)

    def end(self, reason: str) -> None:
        """For good: every cell ends."""
        queue, self._queue = self._queue, deque()
        for cell in queue:
            self._finish(cell, cell_ends.died(reason))
        self._answer(GuestError(reason))
        self._execute(reason, wished=True)

    def adopt(self, job: Job, language: str) -> bool:
        """Become the context that *job* and *language* ask for, while no cell has run in it. False: it can't."""
        if self.language != language or (job.identity, job.cwd) != (self.job.identity, self.job.cwd):
            return False
        if job.env != self.job.env:
            if not surroundings.can_be_told(self.job.env, job.env):
                return False
            self._env_due = True
        self.job = job
        return True

    def reseed(self, *, at_once: bool = False) -> None:
        """A living process draws fresh randomness before its next cell (jobs bring their own).

        *at_once*: also what runs in it now, as far as its runtime knows how to.
        """
        self._reseed_due = self._process is not None
        if at_once and self._process is not None:
            self._process.reseed()

    @property
    def cells(self) -> int:
        """How many run or wait to."""
        return len(self._queue) + (self._cell is not None)

    @property
    def queued(self) -> int:
        return len(self._queue)

    @property
    def is_unused(self) -> bool:
        """Whether it is ready and no cell has come yet."""
        return self._is_ready and not self.cells and not self.execution_count

    @property
    def has_process(self) -> bool:
        return self._process is not None

    def info(self) -> dict[str, Any]:
        busy, alive = self._cell is not None, self._process is not None
        starting = self._start_timer is not None
        texts = {"language": self.language, "version": self.version, "cwd": self.job.cwd}
        return {
            "context_id": self.context_id,
            **{name: cell_ends.cut(text, _INFO_BYTES[name]) for name, text in texts.items()},
            "state": "busy" if busy else "idle" if self._is_ready else "starting" if alive or starting else "dead",
            "queued": len(self._queue),
            "execution_count": self.execution_count,
            "pid": self._process.pid if self._process is not None else 0,
        }

    # -------------------------------------------------------------------- cells

    def _go_on(self) -> None:
        """Begin the next cell if that is possible now; see to it that it becomes so, if not."""
        while self._queue and self._cell is None and self._is_ready and self._process is not None:
            self._begin(self._process, self._queue.popleft())
            self._move_up()
        if (self._queue or self._waiting) and self._process is None and self._start_timer is None:
            if self._impossible and self._failure is not None:
                self._fail(self._failure)
            else:
                self._start_process()

    def _begin(self, process: ContextProcess, cell: Cell) -> None:
        self._cell = cell
        self._serial += 1
        self._open_watch()
        self._changed_files()  # those of others
        order = cell.order
        message: dict[str, Any] = {"op": "cell", "id": self._serial}
        if order.asks is None:
            self.execution_count += 1
        else:
            message |= dict(order.asks)
        if order.limits:
            message["limits"] = dict(order.limits)
        if self._reseed_due:
            message["seed"] = os.urandom(64).hex()
            self._reseed_due = False
        if self._env_due:
            message["env"] = dict(self.job.env)
            self._env_due = False
        try:
            self._files = cell_input.hand_over(cell, message)
        except OSError as error:
            self._end_cell(process, cell, cell_ends.died(f"its code could not be handed over: {error.strerror}"))
            return
        process.send(message, self._files)
        cell.let_go_of_input()
        cell.on_room = self._on_room
        if order.timeout_s is not None:
            self._cell_timer = self._loop.call_later(order.timeout_s, lambda: self._time_out(cell))
        cell.begin(self.execution_count)
        process.go_on()

    def _time_out(self, cell: Cell) -> None:
        if cell is self._cell:
            cell.timed_out = True
            self._strike(cell)

    def _strike(self, cell: Cell) -> None:
        process = self._process
        if cell is not self._cell or process is None:
            return
        if not cell.struck:
            cell.struck = True
            self._cancel_cell_timer()
            self._cell_timer = self._loop.call_later(cell.order.grace_s, lambda: self._kill(process))
            self._on_room()
        self._interrupt_once(cell, process)

    def _interrupt_once(self, cell: Cell, process: ContextProcess) -> None:
        """SIGINT, once the process has begun the cell: between cells it ignores it."""
        if cell is self._cell and not process.interrupt():
            self._loop.call_later(_RETRY_S, lambda: self._interrupt_once(cell, process))

    def _move_up(self) -> None:
        for place, cell in enumerate(self._queue):
            cell.move(place)

    def _end_cell(self, process: ContextProcess, cell: Cell, end: cell_ends.End) -> None:
        """All it wrote comes first."""
        self._cancel_cell_timer()
        process.drain()
        self._cell = None
        cell_input.take_back(self._files)
        self._finish(cell, end)

    def _finish(self, cell: Cell, end: cell_ends.End) -> None:
        changed, more = self._changed_files() if cell.has_begun else ([], 0)
        cell.finish(end, {"files_changed": changed, "files_cut": more})
        self._ended(cell)

    def _open_watch(self) -> None:
        if self._watch is None and self._process is not None:
            with rights_of(self.job.identity):
                self._watch = FolderWatch(self.job.cwd)

    def _changed_files(self) -> tuple[list[dict[str, str]], int]:
        """Since this was asked last."""
        if self._watch is None:
            return [], 0
        if not self._watch.has_news():
            return [], 0
        with rights_of(self.job.identity):
            return self._watch.changes()

    def _cancel_cell_timer(self) -> None:
        if self._cell_timer is not None:
            self._cell_timer.cancel()
            self._cell_timer = None

    # ------------------------------------------------------------------ process

    def _start_process(self) -> None:
        """Make a waiting child the context; when none waits yet, try again shortly."""
        self._start_timer = None
        child = self._zygote.take()
        now = time.monotonic()
        self._start_by = self._start_by or now + START_LIMIT_S
        if child is None and self._zygote.alive and now < self._start_by:
            self._start_timer = self._loop.call_later(_RETRY_S, self._start_process)
            return
        self._start_by = 0.0
        if child is None:
            self._fail(GuestError("no warm Python in this sandbox", hint="try again; see the guest's console"))
            return
        process = ContextProcess(self._loop, self, child)
        job = replace(self.job, argv=[os.path.join(self._zygote.runtime, SCRIPT)])
        try:
            process.start(self._zygote, job, self.language)
        except OSError as error:
            name = errno.errorcode.get(error.errno or 0, "EIO")
            self._fail(ExecRefused(f"a context can't be set up: {error.strerror}", evidence={"errno": name}))
            return
        self._process = process
        self._is_ready = self._was_ready = self._reseed_due = self._env_due = self._is_wished = False
        self._failure, self._verdict, self.execution_count = None, "", 0
        late = f"it was not ready within {READY_LIMIT_S:g} s"
        self._kill_timer = self._loop.call_later(READY_LIMIT_S, lambda: self._execute(late))

    def _execute(self, verdict: str, *, wished: bool = False) -> None:
        """Kill the process, for the reason *verdict*."""
        if self._start_timer is not None:
            self._start_timer.cancel()
            self._start_timer, self._start_by = None, 0.0
        process = self._process
        if process is not None:
            self._verdict, self._is_wished = self._verdict or verdict, self._is_wished or wished
            self._kill(process)

    def _kill(self, process: ContextProcess) -> None:
        process.kill()
        self._is_ready = False
        self._cancel_kill_timer()
        self._kill_timer = self._loop.call_later(KILL_LIMIT_S, lambda: self._give_up(process))

    def _give_up(self, process: ContextProcess) -> None:
        """SIGKILL has not ended it: the kernel holds it. Its cell must not wait for that."""
        if process is not self._process:
            return
        cell, self._cell = self._cell, None
        cell_input.take_back(self._files)
        if cell is not None:
            self._cancel_cell_timer()
            self._finish(cell, cell_ends.died("it was killed, and the kernel has not ended it yet"))
        self._drop(process)
        self._go_on()

    def _drop(self, process: ContextProcess) -> None:
        """The process is gone. If it never was ready, that is how the start failed."""
        self._process, self._is_ready = None, False
        self._cancel_kill_timer()
        process.close()
        if self._watch is not None:
            self._watch.close()
            self._watch = None
        if not self._was_ready and not self._is_wished:
            self._fail(self._failure or GuestError(f"the context ended while it began: {self._reason(process)}"))

    def _fail(self, failure: CasemateError) -> None:
        """It can't be started: nobody waits any longer."""
        self._failure = failure
        queue, self._queue = self._queue, deque()
        for cell in queue:
            self._finish(cell, cell_ends.died(str(failure)))
        self._answer(failure)

    def _answer(self, failure: CasemateError | None = None) -> None:
        """To all who wait for it to be ready."""
        waiting, self._waiting = self._waiting, []
        for ready, failed in waiting:
            if failure is None:
                ready()
            else:
                failed(failure)

    def _cancel_kill_timer(self) -> None:
        if self._kill_timer is not None:
            self._kill_timer.cancel()
            self._kill_timer = None

    def _reason(self, process: ContextProcess) -> str:
        if self._verdict:
            return self._verdict
        if process.status is None:
            return "it was killed"
        killed = os.waitstatus_to_exitcode(process.status) == -signal.SIGKILL
        return f"it {process.lie}" if killed and process.lie else cell_ends.reason_of(process.status)

    def _end_by_death(self, process: ContextProcess, cell: Cell) -> cell_ends.End:
        killed = process.status is not None and os.waitstatus_to_exitcode(process.status) == -signal.SIGKILL
        if killed and process.oom_kills():
            return {"kind": "out-of-memory"}
        if cell.timed_out:
            return {"kind": "timed-out", "after_s": cell.order.timeout_s, "state_kept": False}
        if cell.struck and not self._verdict and not process.lie:
            return {"kind": "interrupted", "state_kept": False}
        return cell_ends.died(self._reason(process))

    # -------------------------------------------- what the process tells and asks

    def has_room(self) -> bool:
        return self._cell is None or self._cell.has_room()

    def takes_output(self) -> bool:
        return self._cell is not None

    def on_output(self, stream: int, output: bytes) -> None:
        if self._cell is not None:
            self._cell.take_output(stream, output)

    def on_lie(self) -> None:
        if self._process is not None:
            self._kill(self._process)

    def on_dead(self) -> None:
        process, cell = self._process, self._cell
        if process is not None:
            if cell is not None:
                self._end_cell(process, cell, self._end_by_death(process, cell))
            self._drop(process)
            self._go_on()

    def on_message(self, message: dict[str, Any], files: list[int]) -> None:
        event = message.get("event")
        if event == "result":
            self._on_result(message, files)
        elif event == "end":
            self._on_end(message)
        elif self._was_ready:
            raise PeerLied("a message out of turn")
        elif event == "ready":
            self._on_ready(message)
        elif event == "failed":
            self._impossible = True
            self._fail_start(NotSupported(_text(message, "reason"), hint="see which languages its image has"))
        elif event == "refused":
            name = _text(message, "errno")
            what = "its process could not be set up"
            if name in ("ENOENT", "ENOTDIR", "EACCES"):
                what = f"its working directory {self.job.cwd!r} cannot be entered"
            self._fail_start(ExecRefused(f"{what}: {name}", evidence={"errno": name}))
        elif event != "started":
            raise PeerLied("an event there is not")

    def _on_ready(self, message: dict[str, Any]) -> None:
        about = message.get("about")
        if not isinstance(about, dict):
            raise PeerLied("a ready without words about it")
        self.version = _text(about, "version")
        if self._verdict:
            return  # it is being killed
        self._is_ready = self._was_ready = True
        if self._process is not None:
            self._process.is_reseeded_by_signal = message.get("reseed_signal") == RESEED_SIGNAL
            self._process.twisters = cell_ends.count(message.get("twisters", 0))
        self._cancel_kill_timer()
        self._answer()
        self._go_on()
        self._loop.call_later(0, self._open_watch)  # looking at a folder takes longer than all of this

    def _fail_start(self, failure: CasemateError) -> None:
        self._failure = failure
        if self._process is not None:
            self._kill(self._process)

    def _on_result(self, message: dict[str, Any], files: list[int]) -> None:
        cell = self._cell
        serial, body = cell_ends.count(message.get("id")), message.get("body")
        if serial > self._serial:
            raise PeerLied("a result of a cell to come")
        if cell is None or serial != self._serial:
            return  # of a thread that outlived its cell: the only one that could show it has ended
        if isinstance(body, str) and body:
            cell.take_result(body.encode(errors="replace"))
        elif files:
            size = size_of_memory_file(files[0])
            if not size or message.get("size") != size:
                raise PeerLied("a result of another size")
            if cell.take_result_file(files[0], size):
                files.clear()
        else:
            raise PeerLied("a result without a body")
        if cell.left_out["results"] > _LIES_AFTER:
            raise PeerLied("far more results than it may")

    def _on_end(self, message: dict[str, Any]) -> None:
        process, cell = self._process, self._cell
        if process is None or cell is None or cell_ends.count(message.get("id")) != self._serial:
            raise PeerLied("an end out of turn")
        end = cell_ends.checked(message.get("end"))
        if cell.order.asks is None:
            self.execution_count = cell.execution_count = cell_ends.count(message.get("count", self.execution_count))
        cell.left_out["results"] += cell_ends.count(message.get("left_out", 0))
        if cell.timed_out:
            end = {"kind": "timed-out", "after_s": cell.order.timeout_s, "state_kept": True}
        self._end_cell(process, cell, end)
        self._go_on()

    def _on_room(self) -> None:
        if self._process is not None:
            self._process.go_on()


def _text(message: dict[str, Any], name: str) -> str:
    found = message.get(name)
    if not isinstance(found, str):
        raise PeerLied(f"no {name}")
    return cell_ends.cut(found, _TEXT_BYTES)
