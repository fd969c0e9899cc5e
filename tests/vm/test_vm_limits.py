"""What a VMM may use: it is held to it, it does not need more, and nothing of it stays behind."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from vm_world import Daemon

from casemate.errors import CasemateError
from casemate.host import cgroup
from casemate.host.cgroup import Trees, group_of_home
from casemate.sdk import Sandbox

TREES = Trees.find(Path("/proc/self/mountinfo").read_text())
pytestmark = [
    pytest.mark.vm,
    pytest.mark.skipif(
        os.geteuid() != 0 or not os.access("/sys/fs/cgroup", os.W_OK), reason="control groups cannot be written here"
    ),
]
FILL = """
x = bytearray(250 << 20)
for i in range(0, len(x), 4096):
    x[i] = i & 255
print(len(x))
"""
BURN = "import time\nuntil = time.monotonic() + 5\nwhile time.monotonic() < until: pass"


def folder(sandbox: Sandbox, daemon: Daemon, controller: str) -> tuple[Path, int]:
    root, version = TREES.place(controller)
    return root / group_of_home(daemon.home) / sandbox.id, version


def test_a_guest_that_uses_its_memory_and_disk_does_not_end_its_vmm(sandbox: Sandbox, daemon: Daemon) -> None:
    """The limit is above the guest's memory and what QEMU needs beside it; page cache makes room by itself."""
    assert sandbox.commands.run(["python3", "-c", FILL], timeout_s=120).stdout == f"{250 << 20}\n"
    sandbox.commands.run("dd if=/dev/zero of=/home/user/x bs=1M count=600 && sync", timeout_s=120)
    assert sandbox.commands.run(["echo", "alive"]).stdout == "alive\n"
    group, version = folder(sandbox, daemon, "memory")
    if version == 1:
        assert "oom_kill 0" in (group / "memory.oom_control").read_text()
    else:
        assert "oom_kill 0" in (group / "memory.events").read_text()


def test_a_vmm_over_its_limit_is_a_typed_end_and_not_the_hosts(sandbox: Sandbox, daemon: Daemon) -> None:
    """The limit drawn in until the guest's next pages are too many: as when QEMU itself took what it should not."""
    group, version = folder(sandbox, daemon, "memory")
    file = "memory.limit_in_bytes" if version == 1 else "memory.max"
    used = int((group / ("memory.usage_in_bytes" if version == 1 else "memory.current")).read_text())
    (group / file).write_text(str(used + (32 << 20)))
    with pytest.raises(CasemateError):
        sandbox.commands.run(["python3", "-c", FILL], timeout_s=60)
    found = {s.id: s for s in Sandbox.list(all=True)}[sandbox.id]
    assert found.state == "terminated"
    assert found.state_reason is not None
    assert found.state_reason.code == "vmm-died"
    assert "out_of_memory=True" in found.state_reason.message
    with Sandbox.create() as another:
        assert another.commands.run(["echo", "served"]).stdout == "served\n"


def test_a_busy_guest_gets_its_vcpus_and_no_more(sandbox: Sandbox, daemon: Daemon) -> None:
    group, _ = folder(sandbox, daemon, "cpu")
    percent = sandbox.info.raw["attestation"]["jail"]["limits"]["cpu_percent"]
    began, before = time.monotonic(), cpu_s(group)
    sandbox.commands.run(["python3", "-c", BURN])
    used = (cpu_s(group) - before) / (time.monotonic() - began) * 100
    assert used <= percent, f"{used:.0f} % of a processor"


def cpu_s(group: Path) -> float:
    """The CPU time of what is in *group*, by its processes' own account."""
    ticks = 0
    for pid in (group / "cgroup.procs").read_text().split():
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def test_the_group_goes_with_the_sandbox(daemon: Daemon, no_trace: None) -> None:
    sandbox = Sandbox.create()
    folders = [root / group_of_home(daemon.home) / sandbox.id for root in TREES.roots()]
    assert all(path.is_dir() for path in folders)
    sandbox.kill()
    assert not any(path.exists() for path in folders)


def test_memory_runs_out_for_vmms_before_it_does_for_the_daemon(sandbox: Sandbox, daemon: Daemon) -> None:
    """The kernel's order, higher goes first; the launcher's is that of the daemon."""
    score = {pid: int(Path(f"/proc/{pid}/oom_score_adj").read_text()) for pid in (sandbox.info.pid, daemon.pid)}
    assert score[sandbox.info.pid] > score[daemon.pid]


IN_GUEST = """
import json, pathlib, subprocess, sys
sys.path.insert(0, "/root")
import cgroup
groups = cgroup.Groups(cgroup.Trees.find(pathlib.Path("/proc/self/mountinfo").read_text()), "casemate-test")
group = groups.create("one", cgroup.Limits(memory_bytes=48 << 20, cpu_percent=50, pids=9))
folder = group.folders[0]
said = {name: (folder / name).read_text().strip() for name in ("memory.max", "memory.oom.group", "cpu.max", "pids.max")}
hog = [sys.executable, "-c", "x = bytearray(150 << 20); print(len(x))"]
said["hog"] = subprocess.run(hog, preexec_fn=group.enter, stdout=subprocess.DEVNULL).returncode
sleeper = subprocess.Popen(["sleep", "60"], preexec_fn=group.enter)
said["busy"] = group.remove()
group.kill()
said["sleeper"] = sleeper.wait(10)
said["removed"] = group.remove()
groups.close()
said["left"] = folder.parent.exists()
print(json.dumps(said))
"""


def test_the_same_on_a_kernel_with_version_2_alone(sandbox: Sandbox) -> None:
    """A guest has what many hosts have and this one may not: one tree, all controllers in it."""
    sandbox.files.write("/root/cgroup.py", Path(cgroup.__file__).read_bytes(), user="root")
    said = sandbox.commands.run(["python3", "-c", IN_GUEST], user="root", timeout_s=60)
    assert said.ok, said.stderr
    assert json.loads(said.stdout) == {
        "memory.max": str(48 << 20),
        "memory.oom.group": "1",
        "cpu.max": "50000 100000",
        "pids.max": "9",
        "hog": -9,
        "busy": False,
        "sleeper": -9,
        "removed": True,
        "left": False,
    }
