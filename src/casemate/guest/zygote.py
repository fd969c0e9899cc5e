"""The agent's end of the warm Python: children that are ready before anybody asks.

The other end (room ``runtime``) is run by the image's own Python and is trusted as little as the
user's code: every message from it has a bounded size and a checked shape, and which process is
meant is what the kernel says (SCM_CREDENTIALS, our own ``waitpid``), never what a message says.

    agent ──control──▶ zygote root        "make a child, here is its socket"
      │                   └ fork, fork ─▶ child, an orphan, hence our own child
      └──────socket of that child───────▶ "waiting" (with the kernel's word on its pid), then gets a job

A waiting child is nobody's yet: it becomes a script or a context when it gets its job. It is in
its cgroup before the snapshot is made, so that the first job in a clone is one message.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

from casemate.guest.cgroups import Usage
from casemate.guest.peer import Peer, PeerGone, PeerLied

# Beside the libraries themselves, what is imported only when a table is printed, a figure saved:
# a second of an emulated guest's time that every clone would spend again.
PRELOAD = (
    "numpy", "pandas", "matplotlib", "matplotlib.pyplot",
    "matplotlib.backends.backend_agg", "PIL.PngImagePlugin", "PIL.BmpImagePlugin", "PIL.GifImagePlugin",
    "PIL.JpegImagePlugin", "PIL.PpmImagePlugin", "PIL.TiffImagePlugin",
    "pandas.core.resample", "pandas.io.formats.string", "pandas.io.formats.html",
    "IPython", "asyncio", "rlcompleter",  # for contexts
    "encodings.idna",  # asked for by every name look-up: without a network it has to fail fast
)  # fmt: skip
# CPython is started with a script name of this length, over which a child writes its own script's path.
_MARK = "casemate-zygote".ljust(4096, "-")
_SPARES_THAT_MAY_DIE = 3
_PATIENCE = 10


class Timer(Protocol):
    def cancel(self) -> None: ...


class Loop(Protocol):
    """What this client asks of the agent's event loop."""

    def watch(self, fd: int, callback: Callable[[], None]) -> None:
        """Call *callback* whenever *fd* is readable or hung up, until unwatch."""

    def unwatch(self, fd: int) -> None: ...

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Timer: ...


class Group(Protocol):
    """One ready-made cgroup of the user's tree."""

    def add(self, pid: int) -> None:
        """Move the process into the group. Raises OSError (ESRCH) when it is gone."""

    def kill(self) -> None: ...

    def pids(self) -> list[int]:
        """Of all that is in it."""

    def share_fate(self) -> None:
        """When memory runs out and the kernel chooses one of it, all of it goes."""

    def usage(self) -> Usage: ...

    def close(self) -> None:
        """Give the group back: nothing of ours runs in it any more."""


class Reaper(Protocol):
    """PID 1's waiting for children (or a subreaper's)."""

    def adopt(self, pid: int, exited: Callable[[int], None]) -> None:
        """Call *exited* with the wait status when our child *pid* has ended.

        Raises: ChildProcessError when the kernel says *pid* is no child of ours.
        """


@dataclass(frozen=True, slots=True)
class Identity:
    """Whose rights a job gets; the child drops to it before anything of the user's runs."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Job:
    """What `python3 argv…` is to be run with. ``argv[0]`` is the script's path as the user gave it.

    Identity None: the zygote's own (for tests without root).
    """

    argv: Sequence[str]
    env: Mapping[str, str]
    cwd: str
    identity: Identity | None
    tty: bool = False  # its descriptors are a terminal that it shall control


@dataclass(slots=True, eq=False)
class Child:
    """A warm process. Once it was given a job, its group is the owner's of that job."""

    peer: Peer
    group: Group
    pid: int = 0
    exited: Callable[[int], None] | None = None


class Zygote:
    """Warm Python processes; `run_script` gives one a job, `Contexts` keeps some as contexts.

    *python* is the image's interpreter, *runtime* the folder with our room ``runtime``; *new_group* hands out
    a ready cgroup for each child. *spares* children wait at any time; one that was used is replaced
    *refill_after_s* later, and ten times later while others wait, so that forking does not compete with the job
    for what is often the only vCPU. All callbacks run from the
    loop, never from inside a call.
    """

    def __init__(
        self,
        loop: Loop,
        reaper: Reaper,
        new_group: Callable[[], Group],
        *,
        python: str,
        runtime: str,
        preload: Sequence[str] = PRELOAD,
        spares: int = 2,
        refill_after_s: float = 0.5,
        start_limit_s: float = 180.0,
    ) -> None:
        self._loop, self._reaper, self._new_group = loop, reaper, new_group
        self._python, self._preload = python, preload
        self.runtime = runtime
        self._spares, self._refill_after_s = spares, refill_after_s
        self._start_limit_s = start_limit_s
        self._start_timer: Timer | None = None
        self._control: Peer | None = None
        self._waiting: list[Child] = []
        self._coming: list[Child] = []
        self._dead_spares = 0
        self._refill: Timer | None = None
        self._ready: Callable[[], None] | None = None
        self._failed: Callable[[str], None] | None = None
        self.about: dict[str, Any] = {}
        self.root_pid = 0

    def start(self, ready: Callable[[], None], failed: Callable[[str], None]) -> None:
        """Start the zygote root and its spares. *ready* is called when all of them wait for a job.

        *failed* is called, with a reason, when the root ends or breaks the protocol; from then on `take`
        and `run_script` return None, and everything else of the agent goes on.
        """
        self._ready, self._failed = ready, failed
        self._control = Peer()
        self.root_pid = self._spawn_root(self._control.theirs.fileno())
        self._control.theirs.close()
        self._reaper.adopt(self.root_pid, lambda status: self._fail(f"the zygote ended ({status:#x})"))
        self._loop.watch(self._control.fileno(), self._from_root)
        late = f"the zygote was not ready within {self._start_limit_s:g} s"
        self._start_timer = self._loop.call_later(self._start_limit_s, lambda: self._fail(late))

    @property
    def alive(self) -> bool:
        return self._control is not None

    @property
    def is_stocked(self) -> bool:
        """Whether every spare waits, as far as there will be any."""
        return not self.alive or len(self._waiting) >= self._spares

    def refill(self) -> None:
        """Have every spare made now, not when it is time."""
        if self._refill is not None:
            self._refill.cancel()
        self._fill()

    def take(self) -> Child | None:
        """A waiting child, in its group, for the caller to `order`; None when there is none just now."""
        if not self._waiting:
            return None
        child = self._waiting.pop(0)
        self._refill_later()
        return child

    def put_back(self, child: Child) -> None:
        """One that was taken and is not to get a job."""
        self._waiting.append(child)

    def order(
        self, child: Child, job: Job, stdio: tuple[int, int, int], exited: Callable[[int], None], **more: Any
    ) -> bool:
        """Give *child* its job. False: it can't be sent; the child is then put back.

        The child answers on its peer: `started`, or `refused` with an errno name; or it just ends.
        """
        who = job.identity
        message = {
            "argv": list(job.argv),
            "env": dict(job.env),
            "cwd": job.cwd,
            "uid": who.uid if who else None,
            "gid": who.gid if who else None,
            "groups": list(who.groups) if who else [],
            "seed": os.urandom(64).hex(),
            **more,
        }
        if not child.peer.send(message, stdio):
            self.put_back(child)
            return False
        self._loop.unwatch(child.peer.fileno())
        child.exited = exited
        return True

    def run_script(
        self,
        job: Job,
        stdio: tuple[int, int, int],
        *,
        started: Callable[[], None],
        refused: Callable[[str], None],
        exited: Callable[[int], None],
    ) -> Child | None:
        """Give *job* to a waiting child. None: nobody waits (or the job is too big): run `python3` cold.

        *stdio* is copied, the caller keeps and closes its own. Then exactly one of *started* or
        *refused* (errno name, as ENOENT for a missing cwd) is called; *exited* (wait status) follows
        after *started* only. The child's group is the caller's to kill and close, refused or not.
        """
        child = self.take()
        if child is None:
            return None
        start = _Start(self._loop, child, started, refused, exited)
        if not self.order(child, job, stdio, start.on_exit):
            return None
        self._loop.watch(child.peer.fileno(), start.on_message)
        return child

    def stop(self) -> None:
        """End the zygote root and the waiting children."""
        self._failed = None
        self._fail("stopped")

    # ------------------------------------------------------------------ root

    def _spawn_root(self, fd: int) -> int:
        env = {
            "PATH": f"{os.path.dirname(self._python)}:/usr/local/bin:/usr/bin:/bin",
            "LANG": "C.UTF-8",
            "HOME": "/nonexistent",
            "MPLCONFIGDIR": "/run/casemate/matplotlib",
            "PYTHONPATH": os.path.join(self.runtime, "hook"),
            "CASEMATE_ZYGOTE": json.dumps({"fd": fd, "preload": list(self._preload)}),
        }
        pid = os.fork()
        if pid == 0:
            self._exec_root(fd, env)
        return pid

    def _exec_root(self, fd: int, env: dict[str, str]) -> NoReturn:
        try:
            for number in signal.valid_signals():  # what the agent ignores or blocks is no business of the user's
                if signal.getsignal(number) is signal.SIG_IGN:
                    signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, [])
            os.setsid()
            os.chdir("/")
            os.set_inheritable(fd, True)
            null = os.open("/dev/null", os.O_RDWR)
            os.dup2(null, 0)
            os.dup2(2, 1)
            os.execve(self._python, ["python3", _MARK], env)
        finally:
            os._exit(127)

    def _from_root(self) -> None:
        assert self._control is not None
        try:
            received = self._control.receive()
            if received is None:
                return None
            if self.about or received[0].get("event") != "ready":
                raise PeerLied("a message out of turn")
        except PeerGone:
            return self._fail("the zygote hung up")
        except PeerLied as lie:
            return self._fail(f"the zygote sent {lie}")
        self.about = received[0]
        self._fill()
        return None

    def _fail(self, reason: str) -> None:
        if self._control is None:
            return
        self._loop.unwatch(self._control.fileno())
        self._control.close()
        self._control = None
        for child in (*self._waiting, *self._coming):
            self._discard(child)
        self._waiting.clear()
        self._coming.clear()
        for timer in (self._refill, self._start_timer):
            if timer is not None:
                timer.cancel()
        if self._failed is not None:
            self._failed(reason)

    # ---------------------------------------------------------------- spares

    def _refill_later(self) -> None:
        if self._refill is not None and not self._waiting:
            self._refill.cancel()
            self._refill = None
        if self._refill is None:
            delay_s = self._refill_after_s * (_PATIENCE if self._waiting else 1)
            self._refill = self._loop.call_later(delay_s, self._fill)

    def _fill(self) -> None:
        self._refill = None
        for _ in range(self._spares - len(self._waiting) - len(self._coming)):
            self._ask_for_child()

    def _ask_for_child(self) -> None:
        if self._control is None:
            return
        child = Child(Peer(), self._new_group())
        if not self._control.send({"op": "fork"}, [child.peer.theirs.fileno()]):
            child.peer.close()
            child.group.close()
            self._fail("the zygote does not take orders")
            return
        child.peer.theirs.close()
        self._coming.append(child)
        self._loop.watch(child.peer.fileno(), lambda: self._from_spare(child))

    def _from_spare(self, child: Child) -> None:
        try:
            received = child.peer.receive()
            if received is None:
                return None
            message, pid = received
            if child.pid or message != {"event": "waiting"}:
                raise PeerLied("a message out of turn")
            self._reaper.adopt(pid, lambda status: self._on_exit(child, status))
            child.pid = pid
            child.group.add(pid)
        except (PeerGone, PeerLied, OSError):
            return self._lost(child)
        self._coming.remove(child)
        self._waiting.append(child)
        self._dead_spares = 0
        if self._ready is not None and not self._coming:
            ready, self._ready = self._ready, None
            if self._start_timer is not None:
                self._start_timer.cancel()
            ready()
        return None

    def _on_exit(self, child: Child, status: int) -> None:
        if child.exited is not None:
            child.exited(status)
        else:
            self._lost(child)

    def _lost(self, child: Child) -> None:
        """A child that ended, or lied, before it had a job."""
        if child.peer.fileno() < 0:
            return
        for place in (self._waiting, self._coming):
            if child in place:
                place.remove(child)
        self._discard(child)
        self._dead_spares += 1
        if self._dead_spares > _SPARES_THAT_MAY_DIE:
            self._fail("its children die")
        else:
            self._refill_later()

    def _discard(self, child: Child) -> None:
        self._loop.unwatch(child.peer.fileno())
        child.peer.close()
        child.group.kill()
        child.group.close()


class _Start:
    """From the job to the child's word that it has begun; the order of the callbacks is kept here."""

    def __init__(
        self,
        loop: Loop,
        child: Child,
        started: Callable[[], None],
        refused: Callable[[str], None],
        exited: Callable[[int], None],
    ) -> None:
        self._loop, self._child = loop, child
        self._started, self._refused, self._exited = started, refused, exited
        self._answered = False
        self._begun = False

    def on_message(self) -> None:
        try:
            received = self._child.peer.receive()
        except (PeerGone, PeerLied):
            return self._answer("EIO")
        if received is None:
            return None
        message = received[0]
        errno_name = message.get("errno")
        if message.get("event") == "started":
            return self._answer(None)
        return self._answer(errno_name if isinstance(errno_name, str) and len(errno_name) < 20 else "EIO")

    def _answer(self, errno_name: str | None) -> None:
        self._loop.unwatch(self._child.peer.fileno())
        self._child.peer.close()
        self._answered = True
        self._begun = errno_name is None
        if errno_name is None:
            self._started()
        else:
            self._refused(errno_name)

    def on_exit(self, status: int) -> None:
        if not self._answered:
            self.on_message()  # its word may be in the socket still
        if not self._answered:
            self._answer("EIO")
        if self._begun:
            self._exited(status)
