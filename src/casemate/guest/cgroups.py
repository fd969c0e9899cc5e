"""The user's processes by cgroup: one group per exec, made ahead, killed and measured as a whole.

/sys/fs/cgroup/user/         limits (memory.max, pids.max) and the freezer for everything of the user's
/sys/fs/cgroup/user/<n>/     one exec, script or context
"""

from __future__ import annotations

import os
import re
import signal
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from casemate.guest.reactor import Callback, Timer

ROOT = "/sys/fs/cgroup"
RESERVE_BYTES = 32 << 20  # of what is to be had, user processes never get this: the agent works in it
PIDS_MAX = 4096
_SWEEP_AFTER_S = 0.5


class Later(Protocol):
    def call_later(self, delay_s: float, callback: Callback) -> Timer: ...


@dataclass(frozen=True, slots=True)
class Usage:
    cpu_ms: float | None
    peak_memory_mib: float | None
    oom_kills: int


NO_USAGE = Usage(None, None, 0)


class Group:
    """One cgroup. Its files are opened when it is made, so that the end of an exec costs three reads."""

    def __init__(self, owner: Groups, path: str) -> None:
        self._owner, self._path = owner, path
        os.mkdir(path)
        self.procs_fd = os.open(path + "/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)
        self._stat = os.open(path + "/cpu.stat", os.O_RDONLY | os.O_CLOEXEC)
        self._events = _open_if_there(path + "/memory.events")
        self._peak = _open_if_there(path + "/memory.peak")

    def add(self, pid: int) -> None:
        """Move the process into the group. Raises OSError (ESRCH) when it is gone."""
        os.write(self.procs_fd, b"%d" % pid)
        _let_oom_killer_choose(pid)

    def pids(self) -> list[int]:
        """Of all that is in it."""
        return [int(pid) for pid in _read(self._path + "/cgroup.procs").split()] if self.procs_fd >= 0 else []

    def kill(self) -> None:
        """SIGKILL to all that is in it, forks included."""
        if self.procs_fd >= 0:
            _write(self._path + "/cgroup.kill", "1")

    def share_fate(self) -> None:
        """When memory runs out and the kernel chooses one of it, all of it goes."""
        if os.path.exists(self._path + "/memory.oom.group"):
            _write(self._path + "/memory.oom.group", "1")

    def usage(self) -> Usage:
        cpu_us = _value(self._stat, b"usage_usec ")
        peak = int(os.pread(self._peak, 32, 0)) if self._peak >= 0 else None
        return Usage(
            cpu_ms=round(cpu_us / 1000, 1),
            peak_memory_mib=round(peak / 2**20, 1) if peak is not None else None,
            oom_kills=_value(self._events, b"oom_kill ") if self._events >= 0 else 0,
        )

    def close(self) -> None:
        """Give the group back. What still runs in it (a server put in the background) goes on."""
        if self.procs_fd < 0:
            return
        for fd in (self.procs_fd, self._stat, self._events, self._peak):
            if fd >= 0:
                os.close(fd)
        self.procs_fd = self._stat = self._events = self._peak = -1
        self._owner.discard(self._path)


class LooseGroup(Group):
    """Stands in where there is no cgroup v2 to write: whoever was added, and their process groups."""

    def __init__(self) -> None:
        self._pids: list[int] = []
        self.procs_fd = -1

    def add(self, pid: int) -> None:
        os.kill(pid, 0)
        self._pids.append(pid)

    def pids(self) -> list[int]:
        return list(self._pids)

    def kill(self) -> None:
        for pid in self._pids:
            try:
                os.killpg(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue

    def share_fate(self) -> None:
        """Without cgroups the kernel chooses processes."""

    def usage(self) -> Usage:
        return NO_USAGE

    def close(self) -> None:
        self._pids.clear()


class Groups:
    """The user's tree below *root*; None: no cgroups here, every group is a loose one."""

    def __init__(self, loop: Later, root: str | None = ROOT) -> None:
        self._loop = loop
        self._user = os.path.join(root, "user") if root else None
        self._serial = 0
        self.is_stopped = False
        self._dead: list[str] = []
        self._sweep: Timer | None = None
        if root and self._user:
            wanted = [c for c in ("memory", "pids", "cpu") if c in _read(root + "/cgroup.controllers").split()]
            enable = " ".join("+" + controller for controller in wanted)
            _write(root + "/cgroup.subtree_control", enable)
            os.makedirs(self._user, exist_ok=True)
            _write(self._user + "/cgroup.subtree_control", enable)

    def new(self) -> Group:
        if self._user is None:
            return LooseGroup()
        self._serial += 1
        return Group(self, f"{self._user}/{self._serial}")

    def discard(self, path: str) -> None:
        """Remove the folder of a group, some time later: it costs milliseconds that nobody should wait for."""
        self._dead.append(path)
        if self._sweep is None:
            self._sweep = self._loop.call_later(_SWEEP_AFTER_S, self._remove_dead)

    def limit(self) -> None:
        """Bound the whole tree: the memory that can be had by now but our reserve, and a number of processes.

        Over what can be had there is no memory but the pages of programs that run, the agent's among them: a limit
        above that is never reached, because the guest spends its time reading those pages again and again.
        """
        if self._user is None:
            return
        available = next(
            int(line.split()[1]) for line in _read("/proc/meminfo").splitlines() if line.startswith("MemAvailable")
        )
        most = max(available * 1024 - RESERVE_BYTES, RESERVE_BYTES)
        if os.path.exists(self._user + "/memory.max"):
            _write(self._user + "/memory.max", str(most))
        if os.path.exists(self._user + "/pids.max"):
            _write(self._user + "/pids.max", str(PIDS_MAX))

    def freeze(self, frozen: bool) -> None:
        """Stop everything of the user's, soon; or let it go on. What is killed meanwhile dies."""
        self.is_stopped = frozen
        if self._user is not None:
            _write(self._user + "/cgroup.freeze", "1" if frozen else "0")

    def is_frozen(self) -> bool:
        return self._user is None or "frozen 1" in _read(self._user + "/cgroup.events")

    def find_held(self) -> str | None:
        """One that waits for the kernel and can't be stopped: its pid and name."""
        for folder, _, _ in os.walk(self._user or "", followlinks=False):
            for pid in _read(folder + "/cgroup.procs").split():
                with (
                    suppress(FileNotFoundError, ProcessLookupError),
                    open(f"/proc/{pid}/stat", errors="replace") as stat,
                ):
                    name, _, rest = stat.read().rpartition(") ")
                    if rest.startswith("D"):
                        return f"{pid} {name.partition('(')[2]}"
        return None

    def stats(self) -> dict[str, int]:
        """The tree's memory and processes now; empty without cgroups."""
        if self._user is None:
            return {}
        found = {"memory_bytes": "memory.current", "processes": "pids.current"}
        return {
            name: int(_read(f"{self._user}/{file}"))
            for name, file in found.items()
            if os.path.exists(f"{self._user}/{file}")
        }

    def processes(self) -> int:
        return self.stats().get("processes", 0)

    def cpu_ms(self) -> int:
        """What the whole tree has used since the guest booted; ended groups count on. 0 without cgroups."""
        if self._user is None:
            return 0
        usage = re.search(r"^usage_usec (\d+)$", _read(self._user + "/cpu.stat"), re.MULTILINE)
        return int(usage[1]) // 1000 if usage else 0

    def sweep(self) -> None:
        """Remove now what waits for it."""
        if self._sweep is not None:
            self._sweep.cancel()
        self._remove_dead()

    def _remove_dead(self) -> None:
        self._sweep = None
        self._dead = [path for path in self._dead if not _removed(path)]


def _removed(path: str) -> bool:
    try:
        os.rmdir(path)
    except FileNotFoundError:
        return True
    except OSError:  # EBUSY: something still runs in it
        return False
    return True


def _let_oom_killer_choose(pid: int) -> None:
    """Processes forked from ours inherit our protection, which is not for them."""
    _write(f"/proc/{pid}/oom_score_adj", "0")


def _value(fd: int, name: bytes) -> int:
    text = os.pread(fd, 1024, 0)
    at = text.find(name)
    return int(text[at + len(name) :].split(None, 1)[0]) if at >= 0 else 0


def _open_if_there(path: str) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return -1


def _read(path: str) -> str:
    with open(path) as file:
        return file.read()


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
