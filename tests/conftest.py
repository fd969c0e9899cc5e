"""Fixtures for every test, and the check that a test leaves no trace on the host.

The ladder for real machines (``tests/vm/conftest.py``):  home → daemon → sandbox.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import hypothesis
import pytest

hypothesis.settings.register_profile("any machine", deadline=None)  # how long an example takes proves nothing here
hypothesis.settings.load_profile("any machine")
SETTLE_S = 5.0  # a process that was told to end may take a moment; longer is a leak


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
    def of_now(cls) -> Trace:
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
        groups = {str(p) for root in Path("/sys/fs/cgroup").glob("*") for p in root.glob("*casemate*")}
        return cls(
            frozenset(children_of(os.getpid())),
            frozenset(line.split()[4] for line in mounts),
            frozenset(groups),
            frozenset(_sockets()),
            frozenset(map(str, Path(tempfile.gettempdir()).glob("casemate-*"))),
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


def _named(kind: str, items: set[object]) -> str:
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


@pytest.fixture
def no_trace() -> Iterator[None]:
    """Fails the test after which a process, mount, cgroup, socket or folder of ours is there that was not before."""
    before = Trace.of_now()
    yield
    deadline = time.monotonic() + SETTLE_S
    while (extra := Trace.of_now().beyond(before)) and time.monotonic() < deadline:
        time.sleep(0.05)  # the kernel tells nobody when the last of it is gone
    assert not extra, "left behind: " + "; ".join(_named(kind, items) for kind, items in extra.items())
