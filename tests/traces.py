"""What a test leaves behind on the host, told from what others do there at the same time.

Each process of pytest has a TMPDIR of its own, which all it starts inherits. So what somebody else's tests or daemon
have at the moment (another worker's, another checkout's) is not held against ours, and an orphan of ours is found
although it is no descendant any more.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

PREFIX = "casemate-tests-"
LAUNCHER = b"casemate.host.launcher"


@dataclass(frozen=True)
class Scope:
    """The folders of one process of pytest. *temp* is its TMPDIR, *base* holds its tests' tmp_path."""

    temp: Path
    base: Path

    def owns(self, pid: int) -> bool:
        """Whether it was started by this pytest or what that started, whoever its parent is by now."""
        try:
            return f"TMPDIR={self.temp}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:  # it has ended, or is of another user and so none of ours
            return False

    def is_elsewhere(self, place: Path) -> bool:
        """Whether *place* lies in the folders of another pytest."""
        if any(place.is_relative_to(own) for own in (self.temp, self.base)):
            return False
        below = place.relative_to(self.temp.parent).parts if place.is_relative_to(self.temp.parent) else ()
        return bool(below) and below[0].startswith((PREFIX, "pytest-of-"))


@contextmanager
def own_scope(base: Path) -> Iterator[Scope]:
    """A TMPDIR for this process and its children; whoever leaves something in it fails the run."""
    temp = Path(tempfile.mkdtemp(prefix=PREFIX))
    temp.chmod(0o755)  # a daemon's or a VMM's uid passes; pytest's own folders are closed to all but root
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(temp))
        patch.setattr(tempfile, "tempdir", None)
        yield Scope(temp, base)
    temp.rmdir()


def children_of(pid: int) -> set[int]:
    """All living descendants of *pid*, as the kernel has them."""
    found: set[int] = set()
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            direct = {int(child) for child in path.read_text().split()}
        except OSError:  # the thread ended while we looked
            continue
        for child in direct:
            found |= {child} | children_of(child)
    return found


@dataclass(frozen=True)
class Trace:
    """What of the host a test could leave behind."""

    processes: frozenset[int]
    mounts: frozenset[str]
    cgroups: frozenset[str]
    descriptors: frozenset[str]
    folders: frozenset[str]

    @classmethod
    def of_now(cls, scope: Scope) -> Trace:
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
        mounts = (line.split()[4] for line in lines)
        processes = {pid for pid in map(int, filter(str.isdecimal, os.listdir("/proc"))) if scope.owns(pid)}
        return cls(
            frozenset(children_of(os.getpid()) | processes - {os.getpid()}),
            frozenset(mount for mount in mounts if not scope.is_elsewhere(Path(mount))),
            frozenset(_groups(scope)),
            frozenset(_sockets()),
            frozenset(map(str, scope.temp.glob("casemate-*"))),
        )

    def beyond(self, before: Trace) -> dict[str, set[object]]:
        pairs = {
            "processes": self.processes - before.processes,
            "mounts": self.mounts - before.mounts,
            "cgroups": self.cgroups - before.cgroups,
            "descriptors": self.descriptors - before.descriptors,
            "folders": self.folders - before.folders,
        }
        return {kind: set(extra) for kind, extra in pairs.items() if extra}


def _groups(scope: Scope) -> set[str]:
    """Control groups nobody living answers for, and those of machines whose launcher is ours.

    The group above a home's machines stays for as long as its launcher lives, which is then a process to be found.
    """
    found: set[str] = set()
    tops = [top for root in Path("/sys/fs/cgroup").glob("*") for top in root.glob("*casemate*")]
    ours, others = _launchers(scope) if tops else (set(), set())
    for top in tops:
        if top.name in ours:
            with suppress(FileNotFoundError):  # its last machine and its launcher have just ended
                found.update(str(group) for group in top.iterdir() if group.is_dir())
        elif top.name not in others and not _is_of_another_pytest(top.name):
            found.add(str(top))
    return found


def _is_of_another_pytest(name: str) -> bool:
    """Which looks after them: tests that make control groups without a launcher name them ``casemate-test-…<pid>``."""
    made = re.match(r"casemate-test-(?:[a-z]+-)?(\d+)", name)
    return made is not None and int(made[1]) != os.getpid()


def _launchers(scope: Scope) -> tuple[set[str], set[str]]:
    """The names of the groups that living launchers were given: ours, and others'."""
    ours, others = set[str](), set[str]()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:  # it has ended
            continue
        if LAUNCHER in words:
            mine = scope.owns(int(folder.name)) or int(folder.name) in children_of(os.getpid())
            (ours if mine else others).update(os.fsdecode(word) for word in words if word.startswith(b"casemate-"))
    return ours, others


def _sockets() -> set[str]:
    found = set()
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{descriptor}")
        except OSError:  # the listing's own descriptor
            continue
        if target.startswith("socket:") or "casemate" in target:
            found.add(f"{descriptor} {target}")
    return found


def named(kind: str, items: set[object]) -> str:
    """For the message of a test that left *items*."""
    if kind != "processes":
        return f"{kind}: {sorted(map(str, items))}"
    lines = []
    for pid in sorted(items, key=str):
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")[:200]
            lines.append(f"{pid} {command!r}")
        except OSError:
            lines.append(f"{pid} (just ended)")
    return f"{kind}: {lines}"
