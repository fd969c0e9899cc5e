"""The agent's end of the warm Python: children that are ready before anybody asks.

The other end (room ``runtime``) is run by the image's own Python and is trusted as little as the
user's code: every message from it has a bounded size and a checked shape, and which process is
meant is what the kernel says (SCM_CREDENTIALS, our own ``waitpid``), never what a message says.

    agent ──control──▶ zygote root        "make a child, here is its socket"
      │                   └ fork, fork ─▶ child, an orphan, hence our own child
      └──────socket of that child───────▶ "hello" (with the kernel's word on its pid), waits for a job

A waiting child is nobody's yet: it becomes a script or the default context when it gets its job. It is in
its cgroup before the snapshot is made, so that the first job in a clone is one message.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


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
    """A script to be run as ``python3 argv…``. ``argv[0]`` is the script's path as the user gave it."""

    argv: Sequence[str]
    env: Mapping[str, str]
    cwd: str
    identity: Identity


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the default context is started with, when a cell finds none alive."""

    env: Mapping[str, str]
    cwd: str
    identity: Identity


@dataclass(slots=True)
class Child:
    """A warm process that has been given a job. Its group is the caller's from now on."""

    pid: int
    group: Group


@dataclass(slots=True)
class Cell:
    """One piece of code in the default context, waiting or running."""

    code: bytes
    timeout_s: float | None
    output: Callable[[int, bytes], None]
    ended: Callable[[dict[str, Any]], None]
    paused: bool = field(default=False)

    def pause(self) -> None:
        """Read no more output; the context's writes block when its pipe is full."""
        raise NotImplementedError

    def resume(self) -> None:
        raise NotImplementedError

    def cancel(self) -> None:
        """End the cell as a time-out does (SIGINT, then the group is killed); `ended` is still called."""
        raise NotImplementedError


class Zygote:
    """Warm Python processes for scripts and for the one default context.

    *argv* starts the zygote root (see `command`); *new_group* hands out a ready cgroup for each child.
    *spares* children wait at any time; one that was used is replaced *refill_after_s* later, so that
    forking does not compete with the job. All callbacks run from the loop, never from inside a call.
    """

    def __init__(
        self,
        loop: Loop,
        reaper: Reaper,
        new_group: Callable[[], Group],
        *,
        argv: Sequence[str],
        env: Mapping[str, str],
        spares: int = 2,
        refill_after_s: float = 0.25,
    ) -> None:
        raise NotImplementedError

    def start(self, ready: Callable[[], None], failed: Callable[[str], None]) -> None:
        """Start the zygote root and its spares. *ready* is called when all of them wait for a job.

        *failed* is called, with a reason, when the root ends or breaks the protocol; from then on
        `run_script` returns None and cells end as died, and everything else of the agent goes on.
        """
        raise NotImplementedError

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
        after *started* only.
        """
        raise NotImplementedError

    def cell(
        self,
        code: bytes,
        surroundings: Surroundings,
        *,
        timeout_s: float | None,
        output: Callable[[int, bytes], None],
        ended: Callable[[dict[str, Any]], None],
    ) -> Cell:
        """Run *code* in the default context, starting one when none is alive; cells queue in order.

        *output* gets (1 or 2, bytes); *ended* gets the body of the `end` message: ``{"end": {...},
        "text": str | None, "duration_ms": int}``, after the last byte of output. Bounded so that its
        JSON fits a frame.
        """
        raise NotImplementedError

    def reseed(self) -> None:
        """Send fresh randomness to the living context. Jobs bring their own: waiting children need none."""
        raise NotImplementedError

    def stop(self) -> None:
        """End the zygote root, its waiting children and the context."""
        raise NotImplementedError


def command(python: str, runtime: str, preload: Sequence[str] = ()) -> tuple[list[str], dict[str, str]]:
    """(argv, env) that start the zygote root in *runtime* with the image's *python*."""
    raise NotImplementedError
