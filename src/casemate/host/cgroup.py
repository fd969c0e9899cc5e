"""A control group per VMM: its limits while it lives, and the way to be sure of its end.

``casemate-<home>/<sandbox>`` at the top of each tree that is needed: v2 alone, or v1's memory, cpu and pids with the
v2 tree beside them, which limits nothing there and still kills. Made, entered and removed by the launcher; what a
killed one left is found by the name of the home. Source: the kernel's admin-guide/cgroup-v1 and cgroup-v2
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import os
import re
import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

CONTROLLERS = ("memory", "cpu", "pids")
CPU_PERIOD_US = 100_000
CLONE3, CLONE_INTO_CGROUP = 435, 0x200000000  # Source: asm-generic/unistd.h, linux/sched.h
NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")


@dataclass(frozen=True, slots=True)
class Limits:
    """What a VMM may use. *cpu_percent*: 100 is one processor."""

    memory_bytes: int
    cpu_percent: int
    pids: int

    def __post_init__(self) -> None:
        if min(self.memory_bytes, self.cpu_percent, self.pids) <= 0:
            raise ValueError(f"a limit has to be positive: {self}")

    def files(self, controller: str, version: int) -> Mapping[str, str]:
        """What is written where, in order."""
        quota = self.cpu_percent * CPU_PERIOD_US // 100
        match controller, version:
            case "memory", 1:
                return {"memory.limit_in_bytes": str(self.memory_bytes)}
            case "memory", _:
                return {"memory.max": str(self.memory_bytes), "memory.oom.group": "1"}
            case "cpu", 1:
                return {"cpu.cfs_period_us": str(CPU_PERIOD_US), "cpu.cfs_quota_us": str(quota)}
            case "cpu", _:
                return {"cpu.max": f"{quota} {CPU_PERIOD_US}"}
            case _:
                return {"pids.max": str(self.pids)}


@dataclass(frozen=True, slots=True)
class Trees:
    """Where this host's control groups are mounted. *v1*: by controller."""

    v2: Path | None
    v1: Mapping[str, Path]

    @classmethod
    def find(cls, mountinfo: str) -> Trees:
        """From the text of /proc/self/mountinfo; only trees that are mounted from their top."""
        v2: Path | None = None
        v1: dict[str, Path] = {}
        for line in mountinfo.splitlines():
            fields, _, rest = line.partition(" - ")
            kind, _, options = rest.split(" ", 2)
            place = Path(fields.split()[4])
            if fields.split()[3] != "/":
                continue
            if kind == "cgroup2":
                v2 = place
            elif kind == "cgroup":
                v1 |= {word: place for word in options.split(",") if word in CONTROLLERS}
        return cls(v2, v1)

    def place(self, controller: str) -> tuple[Path, int]:
        """The tree that serves *controller*, and its version. Raises FileNotFoundError when none does."""
        if controller in self.v1:
            return self.v1[controller], 1
        if self.v2 is not None and controller in (self.v2 / "cgroup.controllers").read_text().split():
            return self.v2, 2
        raise FileNotFoundError(errno.ENOENT, "no control group tree serves it", controller)

    def roots(self) -> list[Path]:
        """Each tree once, v2 first: it is the one to kill by."""
        found = [self.v2] if self.v2 is not None else []
        return [*found, *(path for path in dict.fromkeys(self.v1.values()) if path not in found)]


def group_of_home(home: Path) -> str:
    """The name under which all groups of one home lie, in every tree."""
    return f"casemate-{hashlib.sha256(os.fsencode(home.resolve())).hexdigest()[:16]}"


@dataclass(frozen=True, slots=True)
class Group:
    """One VMM's group: the same folder in each tree."""

    folders: tuple[Path, ...]
    v2: Path | None  # the one of them in the v2 tree

    def fork(self) -> int:
        """fork(2) by a process of one thread, the child in this group of the v2 tree from its first moment where the
        kernel can do that; glibc's locks are not looked after, which another thread may hold.

        Moving a process later makes the kernel wait until every CPU has looked up: 6 ms and more, with forks of
        the whole host held up. Raises OSError.
        """
        if self.v2 is not None:
            descriptor = os.open(self.v2, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                if (pid := _clone_into(descriptor)) is not None:
                    return pid
            finally:
                os.close(descriptor)
        return os.fork()

    def enter(self) -> None:
        """Move the calling process, of one thread, into whatever of it it is not in yet. Raises OSError."""
        for folder in self.folders:
            if folder != self.v2:
                _write(folder / "tasks", "0")  # a thread that moves itself has nobody to wait for
            elif not _is_in(folder):
                _write(folder / "cgroup.procs", "0")

    def kill(self) -> None:
        """SIGKILL to all in it, at once where the kernel can do that. Raises OSError."""
        for folder in self.folders:
            try:
                _write(folder / "cgroup.kill", "1")
                return
            except FileNotFoundError:  # a v1 tree, a kernel before 5.14, or the group is gone
                continue
        for folder in self.folders:
            for pid in self._members(folder):
                _kill_member(pid, folder)

    def ran_out_of_memory(self) -> bool:
        """Whether the kernel killed anything in it for its memory limit."""
        for folder in self.folders:
            for file in ("memory.events", "memory.oom_control"):  # v2's, v1's
                try:
                    lines = (folder / file).read_text().splitlines()
                except OSError:  # another tree, or it is gone
                    continue
                if any(line.split()[0] == "oom_kill" and line.split()[1] != "0" for line in lines):
                    return True
        return False

    def remove(self) -> bool:
        """Delete it, if it is there. False while something still runs in it. Raises OSError for any other reason."""
        for folder in self.folders:
            try:
                folder.rmdir()
            except FileNotFoundError:
                continue
            except OSError as error:
                if error.errno != errno.EBUSY:
                    raise
                return False
        return True

    @staticmethod
    def _members(folder: Path) -> list[int]:
        try:
            return [int(word) for word in (folder / "cgroup.procs").read_text().split()]
        except (FileNotFoundError, OSError):  # ENODEV: removed between open and read
            return []


class Groups:
    """The groups of one home's machines; made for the launcher, which alone may write them."""

    def __init__(self, trees: Trees, parent: str) -> None:
        self._trees = trees
        self._parent = parent
        self._made: list[Path] = []  # parents that were not there before us: ours to remove

    @property
    def trees(self) -> Trees:
        return self._trees

    def named(self, name: str) -> Group:
        """The group of that name, whether it is there or not. Raises ValueError for what is no name."""
        if not NAME.fullmatch(name):
            raise ValueError(f"{name[:80]!r} is no name for a control group")
        v2 = None if self._trees.v2 is None else self._trees.v2 / self._parent / name
        return Group(tuple(root / self._parent / name for root in self._trees.roots()), v2)

    def create(self, name: str, limits: Limits) -> Group:
        """A new, empty group with *limits* in force. Raises OSError, with nothing left, where that can't be."""
        group = self.named(name)
        wanted = [(self._trees.place(controller), controller) for controller in CONTROLLERS]
        try:
            for folder in group.folders:
                self._make(folder)
            for (root, version), controller in wanted:
                for file, value in limits.files(controller, version).items():
                    _write(root / self._parent / name / file, value)
        except OSError:
            with contextlib.suppress(OSError):  # the first error is the one to tell
                group.remove()
            raise
        return group

    def leftovers(self) -> Iterator[str]:
        """The names of all groups of this home."""
        found: set[str] = set()
        for root in self._trees.roots():
            with contextlib.suppress(FileNotFoundError):
                found |= {path.name for path in (root / self._parent).iterdir() if path.is_dir()}
        return iter(sorted(name for name in found if NAME.fullmatch(name)))

    def adopt(self) -> None:
        """All of this home's are ours, also those that a killed launcher made."""
        self._made = [root / self._parent for root in self._trees.roots()]

    def close(self) -> None:
        """Remove the parents that are ours."""
        for parent in self._made:
            with contextlib.suppress(OSError):  # another launcher of this home has a machine in it, or removed it
                parent.rmdir()

    def _make(self, folder: Path) -> None:
        parent, root = folder.parent, folder.parent.parent
        try:
            folder.mkdir()
        except FileExistsError:  # a dead launcher's; refused as busy if anything still runs in it
            folder.rmdir()
            folder.mkdir()
        except FileNotFoundError:
            parent.mkdir(exist_ok=True)
            self._made.append(parent)
            if root == self._trees.v2:
                _delegate(root, parent)
            folder.mkdir()


class _CloneArguments(ctypes.Structure):
    """struct clone_args. Source: linux/sched.h"""

    _fields_ = tuple(
        (name, ctypes.c_uint64)
        for name in (
            *("flags", "pidfd", "child_tid", "parent_tid", "exit_signal", "stack", "stack_size", "tls"),
            *("set_tid", "set_tid_size", "cgroup"),
        )
    )


def _clone_into(cgroup: int) -> int | None:
    """As os.fork(), with the child in the v2 group behind the descriptor; None where the kernel will not."""
    arguments = _CloneArguments(flags=CLONE_INTO_CGROUP, exit_signal=signal.SIGCHLD, cgroup=cgroup)
    api = ctypes.pythonapi  # what os.fork() does around fork(2), and with the interpreter's lock held
    api.PyOS_BeforeFork()
    pid = int(api.syscall(CLONE3, ctypes.byref(arguments), ctypes.sizeof(arguments)))
    if pid == 0:
        api.PyOS_AfterFork_Child()
    else:
        api.PyOS_AfterFork_Parent()
    return None if pid < 0 else pid


def _is_in(folder: Path) -> bool:
    """Whether the calling process is in the v2 group *folder*; only its last two names are compared."""
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    ours = next((line[3:] for line in lines if line.startswith("0::")), "/")
    return Path(ours).parts[-2:] == folder.parts[-2:]


def _write(file: Path, text: str) -> None:
    """To a file that the kernel made; asking to make it, as open() does, is refused with another error."""
    descriptor = os.open(file, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def _delegate(root: Path, parent: Path) -> None:
    """Have the v2 tree's controllers reach the groups below *parent*."""
    offered = (root / "cgroup.controllers").read_text().split()
    words = " ".join(f"+{name}" for name in CONTROLLERS if name in offered)
    if words:
        for folder in (root, parent):
            _write(folder / "cgroup.subtree_control", words)


def _kill_member(pid: int, folder: Path) -> None:
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        if pid in Group._members(folder):  # still the one that was listed
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
    except ProcessLookupError:
        return
    finally:
        os.close(descriptor)
