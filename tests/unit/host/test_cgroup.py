"""Control groups: where this host has them, what is written for a limit, and the group's own life on the real trees."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from casemate.host.cgroup import Groups, Limits, Trees, group_of_home

PARENT = f"casemate-test-{os.getpid()}"  # another pytest on this host has another
LIMITS = Limits(memory_bytes=640 << 20, cpu_percent=150, pids=97)
HYBRID = """\
24 22 0:21 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
25 24 0:22 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid - cgroup cgroup rw,cpu,cpuacct
26 24 0:23 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
27 24 0:24 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids
28 24 0:25 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
29 24 0:26 /docker/abc /other/memory rw - cgroup cgroup rw,memory
"""
UNIFIED = "24 22 0:21 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
writable = pytest.mark.skipif(
    os.geteuid() != 0 or not os.access("/sys/fs/cgroup", os.W_OK), reason="control groups cannot be written here"
)


def test_the_trees_of_a_hybrid_host() -> None:
    found = Trees.find(HYBRID)
    assert found.v2 == Path("/sys/fs/cgroup/unified")
    assert found.place("memory") == (Path("/sys/fs/cgroup/memory"), 1), "not the part of a tree that is mounted"
    assert found.place("cpu") == (Path("/sys/fs/cgroup/cpu,cpuacct"), 1)
    assert found.roots()[0] == found.v2, "the one to kill by comes first"
    assert len(found.roots()) == 4


def test_the_tree_of_a_v2_host() -> None:
    assert Trees.find(UNIFIED) == Trees(Path("/sys/fs/cgroup"), {})
    assert Trees.find(UNIFIED).roots() == [Path("/sys/fs/cgroup")]
    assert Trees.find("") == Trees(None, {})


def test_limits_in_both_versions_words() -> None:
    assert LIMITS.files("memory", 1) == {"memory.limit_in_bytes": str(640 << 20)}
    assert LIMITS.files("memory", 2) == {"memory.max": str(640 << 20), "memory.oom.group": "1"}
    assert LIMITS.files("cpu", 1) == {"cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "150000"}
    assert LIMITS.files("cpu", 2) == {"cpu.max": "150000 100000"}
    assert LIMITS.files("pids", 1) == LIMITS.files("pids", 2) == {"pids.max": "97"}
    with pytest.raises(ValueError, match="positive"):
        Limits(memory_bytes=-1, cpu_percent=100, pids=1)


def test_homes_have_names_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    assert group_of_home(tmp_path) == group_of_home(tmp_path / "link") != group_of_home(tmp_path / "other")


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../a", "cgroup.procs", "A", "a" * 64, "-a", "a\n"])
def test_what_is_no_name_reaches_no_path(name: str) -> None:
    with pytest.raises(ValueError, match="no name"):
        Groups(Trees.find(HYBRID), "casemate-test").named(name)


@pytest.fixture
def groups(no_trace: None) -> Iterator[Groups]:
    found = Groups(Trees.find(Path("/proc/self/mountinfo").read_text()), PARENT)
    yield found
    for name in found.leftovers():
        found.named(name).remove()
    found.close()


@writable
def test_a_group_from_its_making_to_its_end(groups: Groups) -> None:
    group = groups.create("one", LIMITS)
    process = subprocess.Popen(["sleep", "60"], preexec_fn=group.enter)
    assert list(groups.leftovers()) == ["one"]
    assert group.remove() is False, "somebody is in it"
    with pytest.raises(OSError, match="busy"):
        groups.create("one", LIMITS)
    group.kill()
    assert process.wait(10) == -signal.SIGKILL
    assert group.remove() is True
    assert group.remove() is True, "removing what is not there is no error"
    assert list(groups.leftovers()) == []


@writable
def test_what_an_earlier_one_left_empty_is_taken_over(groups: Groups) -> None:
    groups.create("one", LIMITS)
    assert groups.create("one", LIMITS).remove() is True


@writable
def test_without_cgroup_kill_its_processes_are_killed_one_by_one(groups: Groups) -> None:
    """As on a kernel before 5.14, or without the v2 tree: the same group, seen by v1's trees alone."""
    v1 = Trees(None, groups.trees.v1)
    if not v1.v1:
        pytest.skip("this host has no v1 trees")
    old = Groups(v1, f"{PARENT}-v1")
    group = old.create("one", LIMITS)
    processes = [subprocess.Popen(["sleep", "60"], preexec_fn=group.enter) for _ in range(3)]
    group.kill()
    assert {process.wait(10) for process in processes} == {-signal.SIGKILL}
    assert group.remove() is True
    old.close()


@writable
def test_a_limit_the_kernel_refuses_leaves_no_group(groups: Groups) -> None:
    with pytest.raises(OSError, match="Invalid argument"):
        groups.create("one", Limits(memory_bytes=1 << 30, cpu_percent=10**12, pids=10))
    assert list(groups.leftovers()) == []


@writable
def test_a_busy_process_gets_its_share_of_a_processor(groups: Groups) -> None:
    group = groups.create("one", replace(LIMITS, cpu_percent=20))
    burn = "import os, time\nend = time.monotonic() + 2\nwhile time.monotonic() < end: pass\nprint(sum(os.times()[:2]))"
    said = subprocess.run([sys.executable, "-c", burn], preexec_fn=group.enter, stdout=subprocess.PIPE, check=True)
    assert float(said.stdout) < 1, "of 2 s on one processor, with a margin for the quota's granularity"
    root, _ = groups.trees.place("cpu")
    stat = dict(line.split() for line in (root / PARENT / "one/cpu.stat").read_text().splitlines())
    assert int(stat["nr_throttled"]) > 0
    assert group.remove()


FORKS = """
import os, sys
from pathlib import Path
from casemate.host.cgroup import Groups, Trees
own = Path("/proc/self/cgroup")
group = Groups(Trees.find(Path("/proc/self/mountinfo").read_text()), sys.argv[1]).named("one")
pid = group.fork()
if pid == 0:
    os.write(1, own.read_bytes())
    group.enter()
    os.write(1, b"\\n" + own.read_bytes())
    os._exit(0)
sys.exit(os.waitpid(pid, 0)[1])
"""


@writable
def test_a_forked_child_is_in_its_group_from_the_start(groups: Groups) -> None:
    group = groups.create("one", LIMITS)
    argv = [sys.executable, "-c", FORKS, PARENT]  # of one thread, as the launcher is; the tests have several
    forked = subprocess.run(argv, stdout=subprocess.PIPE, text=True, timeout=60, check=True)
    before, after = forked.stdout.split("\n\n")
    assert f"0::/{PARENT}/one" in before, "in the v2 tree it was born there"
    assert after.count(f"/{PARENT}/one") == len(group.folders)
    assert group.remove()
