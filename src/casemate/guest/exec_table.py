"""All execs of this sandbox by id: starting them, and forgetting the oldest ended ones."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from casemate.errors import ExecRefused, NotFound, StateConflict
from casemate.guest import spawned
from casemate.guest.cgroups import Group
from casemate.guest.execs import STDERR, STDOUT, Exec, Stdin
from casemate.guest.reactor import Reactor
from casemate.guest.spawner import Launch, Spawner
from casemate.guest.terminals import Keyboard, Window, open_terminal
from casemate.guest.zygote import Job, Zygote

ENDED_KEPT = 16  # two rings of 1 MiB each, at most
LIVE_AT_MOST = 512
ID_BYTES = 8  # as the host draws them
_STAGES = {
    spawned.STAGE_SETUP: ("its process could not be set up", "the guest may be short of memory or processes"),
    spawned.STAGE_CWD: ("its working directory {cwd!r} cannot be entered", "check cwd"),
    spawned.STAGE_PROGRAM: ("{program!r} cannot be executed", "check the program's name, its PATH and its permissions"),
}


class ExecTable:
    """Owns the execs. *zygote* is None until one is ready."""

    def __init__(self, reactor: Reactor, spawner: Spawner) -> None:
        self._reactor, self._spawner = reactor, spawner
        self.zygote: Zygote | None = None
        self._execs: dict[str, Exec] = {}

    def start(
        self,
        exec_id: str,
        job: Job,
        *,
        warm: bool,
        stdin: bool,
        window: Window | None = None,
        started: Callable[[], None],
        refused: Callable[[ExecRefused], None],
    ) -> Exec:
        """Start *job* (argv of a script when *warm*), on a terminal where it has a *window*.

        Exactly one of *started* and *refused* is called, later.

        Raises StateConflict for an id in use or too many execs, ExecRefused when there are no descriptors.
        """
        self._check(exec_id)
        try:
            stdio, pipes, feed = _open_stdio(job, stdin) if window is None else _open_on_terminal(job, window)
        except OSError as error:
            raise _refusal(error.errno or errno.EMFILE, spawned.STAGE_SETUP, job) from error
        source = None if feed < 0 else (Stdin if window is None else Keyboard)(self._reactor, feed)
        program = Exec(self._reactor, exec_id, list(job.argv), pipes, source, terminal=window is not None)
        self._execs[exec_id] = program

        def on_started(pid: int, group: Group) -> None:
            _close(stdio)
            program.started(pid, group)
            started()

        def on_refused(number: int, stage: int) -> None:
            _close(stdio)
            program.close()
            self._execs.pop(program.exec_id, None)
            refused(_refusal(number, stage, job))

        if not (warm and self._run_warm(job, stdio, on_started, on_refused, program.exited)):
            if warm:
                job = Job(["python3", *job.argv], job.env, job.cwd, job.identity)
            self._spawner.launch(Launch(job, stdio, on_started, on_refused, program.exited))
        return program

    def find(self, exec_id: str) -> Exec:
        """Raises NotFound."""
        found = self._execs.get(exec_id)
        if found is None:
            raise NotFound(f"there is no exec {exec_id!r}", hint="its output is kept only until others have ended")
        return found

    def remove(self, exec_id: str) -> None:
        """Forget an ended exec. Raises NotFound, StateConflict while it runs."""
        found = self.find(exec_id)
        if found.end is None:
            raise StateConflict(f"exec {exec_id} is running", hint="signal it first")
        found.close()
        del self._execs[exec_id]

    def rename_all(self) -> None:
        """In a copy of the sandbox: each goes on under an id nobody knows yet, and is ended by nobody's leaving."""
        execs, self._execs = self._execs.values(), {}
        for program in execs:
            program.exec_id, program.on_disconnect = os.urandom(ID_BYTES).hex(), "keep"
            self._execs[program.exec_id] = program

    def all(self) -> list[Exec]:
        return list(self._execs.values())

    def _check(self, exec_id: str) -> None:
        if exec_id in self._execs:
            raise StateConflict(f"there is an exec {exec_id} already")
        ended = [known for known, program in self._execs.items() if program.settled and not program.viewers]
        for known in ended[: max(len(ended) - ENDED_KEPT + 1, 0)]:
            self.remove(known)
        if len(self._execs) >= LIVE_AT_MOST:
            raise StateConflict(f"{LIVE_AT_MOST} execs run in this sandbox", hint="wait for some to end")

    def _run_warm(
        self,
        job: Job,
        stdio: tuple[int, int, int],
        started: Callable[[int, Group], None],
        refused: Callable[[int, int], None],
        exited: Callable[[int], None],
    ) -> bool:
        zygote = self.zygote
        if zygote is None or not zygote.alive:
            return False

        def on_started() -> None:
            assert child is not None
            started(child.pid, child.group)  # type: ignore[arg-type]

        def on_refused(name: str) -> None:
            assert child is not None
            child.group.kill()
            child.group.close()
            stage = spawned.STAGE_CWD if name in ("ENOENT", "ENOTDIR", "EACCES") else spawned.STAGE_SETUP
            refused(getattr(errno, name, errno.EIO), stage)

        child = zygote.run_script(job, stdio, started=on_started, refused=on_refused, exited=exited)
        return child is not None


def _open_stdio(job: Job, stdin: bool) -> tuple[tuple[int, int, int], dict[int, int], int]:
    """The program's three descriptors, our reading ends by stream, our end of its stdin or -1. Raises OSError."""
    opened: list[int] = []
    try:
        feed = -1
        if stdin:
            source, feed = os.pipe2(os.O_CLOEXEC)
            opened += (source, feed)
            os.set_blocking(feed, False)
        else:
            source = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
            opened.append(source)
        out, out_end = os.pipe2(os.O_CLOEXEC)
        opened += (out, out_end)
        err, err_end = os.pipe2(os.O_CLOEXEC)
        opened += (err, err_end)
        os.set_blocking(out, False)
        os.set_blocking(err, False)
        if job.identity is not None and job.identity.uid:  # so that it may open /dev/stdout by name
            for fd in (out_end, err_end, *((source,) if stdin else ())):
                os.fchown(fd, job.identity.uid, job.identity.gid)
    except OSError:
        _close(opened)
        raise
    return (source, out_end, err_end), {STDOUT: out, STDERR: err}, feed


def _open_on_terminal(job: Job, window: Window) -> tuple[tuple[int, int, int], dict[int, int], int]:
    """As _open_stdio: one terminal is all three. Raises OSError."""
    master, slave = open_terminal(job, window)
    opened = [master, slave]
    try:
        for fd in (slave, slave, master):
            opened.append(os.dup(fd))
    except OSError:
        _close(opened)
        raise
    _, _, out, err, feed = opened
    return (slave, out, err), {STDOUT: master, STDERR: -1}, feed


def _close(fds: tuple[int, ...] | list[int]) -> None:
    for fd in fds:
        os.close(fd)


def _refusal(number: int, stage: int, job: Job) -> ExecRefused:
    what, hint = _STAGES[stage]
    name = errno.errorcode.get(number, "EIO")
    message = f"{what.format(cwd=job.cwd, program=job.argv[0])}: {os.strerror(number)}"
    if number == errno.ENOEXEC:
        hint = "it is no program and has no #! line"
    return ExecRefused(message, hint=hint, evidence={"errno": name})
