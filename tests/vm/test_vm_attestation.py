"""The attestation says what /proc and the control groups say; and it is about the process that the sandbox lives in."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from vm_world import Daemon

from casemate.sdk import Sandbox

pytestmark = [pytest.mark.vm, pytest.mark.skipif(os.geteuid() != 0, reason="reads other users' /proc entries")]
TREES = Path("/sys/fs/cgroup")


@pytest.fixture
def said(sandbox: Sandbox) -> dict[str, Any]:
    found = sandbox.info.raw["attestation"]
    assert found is not None
    return found  # type: ignore[no-any-return]


@pytest.fixture
def vmm(sandbox: Sandbox) -> Path:
    """/proc/PID of the process that has this sandbox's disk open; found without asking anybody for its pid."""
    wanted = f"/{sandbox.id}/disk"
    for process in Path("/proc").glob("[0-9]*"):
        try:
            names = [os.readlink(path) for path in (process / "fd").iterdir()]
        except OSError:  # it ended, or is a kernel thread
            continue
        if any(name.endswith(wanted) for name in names):
            return process
    pytest.fail("no process has the sandbox's disk open")


def test_the_process_is_the_vmms_binary_and_maps_the_memory(said: dict[str, Any], vmm: Path, daemon: Daemon) -> None:
    digest = hashlib.sha256((vmm / "exe").read_bytes()).hexdigest()
    assert said["vmm"]["sha256"] == digest
    assert said["vmm"]["name"] == "qemu"
    assert "QEMU emulator version" in said["vmm"]["version"]
    memory = (daemon.home / "snapshots" / said["image"]["snapshot"] / "memory").stat()
    mapped = [os.stat(vmm / "map_files" / name) for name in os.listdir(vmm / "map_files")]
    assert [m for m in mapped if (m.st_dev, m.st_ino) == (memory.st_dev, memory.st_ino)]


def test_the_jail_is_what_the_kernel_enforces(said: dict[str, Any], vmm: Path) -> None:
    jail = said["jail"]
    for thread in (vmm / "task").iterdir():
        lines = (line.partition(":") for line in (thread / "status").read_text().splitlines())
        status = {name: value.strip() for name, _, value in lines}
        assert {jail["uid"]} == {int(uid) for uid in status["Uid"].split()}
        assert {status[f"Cap{kind}"] for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {"0" * 16}
        assert status["NoNewPrivs"] == "1"
        assert status["Seccomp"] == "2"
        assert int(status["Seccomp_filters"]) >= jail["seccomp"]["filters"] >= 2
    assert jail["caps"] == []
    assert jail["no_new_privs"] is True
    assert jail["seccomp"]["names"] == ["casemate:qemu-tcg", "qemu:-sandbox"]
    assert jail["namespaces"] == {kind: os.readlink(vmm / "ns" / kind) for kind in jail["namespaces"]}
    assert set(jail["namespaces"]) == {"cgroup", "ipc", "mnt", "net", "pid", "user", "uts"}
    assert jail["oom_score_adj"] == int((vmm / "oom_score_adj").read_text()) > 0


def test_the_limits_are_those_of_its_control_group(said: dict[str, Any], vmm: Path, sandbox: Sandbox) -> None:
    jail = said["jail"]
    paths = {}
    for line in (vmm / "cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        paths |= dict.fromkeys(controllers.split(",") if controllers else ["unified"], path)
    if jail["limits"]["version"] != "v1":
        pytest.skip("this reading is of v1's files")
    assert {paths[name] for name in ("memory", "cpu", "pids", "unified")} == {jail["cgroup"]}
    assert jail["cgroup"].endswith(f"/{sandbox.id}")
    group = jail["cgroup"].lstrip("/")
    assert int((TREES / "memory" / group / "memory.limit_in_bytes").read_text()) == jail["limits"]["memory_bytes"]
    assert int((TREES / "pids" / group / "pids.max").read_text()) == jail["limits"]["pids"]
    quota = int((TREES / "cpu" / group / "cpu.cfs_quota_us").read_text())
    period = int((TREES / "cpu" / group / "cpu.cfs_period_us").read_text())
    assert quota * 100 // period == jail["limits"]["cpu_percent"]
    assert jail["limits"]["memory_bytes"] > sandbox.info.raw["memory_mib"] << 20


def test_it_names_isolation_kernel_image_and_policy(said: dict[str, Any], sandbox: Sandbox) -> None:
    assert (said["isolation"], said["accelerator"]) == (sandbox.info.raw["isolation"], sandbox.info.raw["accelerator"])
    assert said["image"]["reference"] == sandbox.info.raw["image"]
    assert sandbox.commands.run(["uname", "-r"]).stdout.strip() == said["kernel"]
    canonical = json.dumps({"network": "none"}, separators=(",", ":"))
    assert said["policy"] == {"network": "none", "digest": hashlib.sha256(canonical.encode()).hexdigest()}


def test_the_sandbox_ends_with_that_process(sandbox: Sandbox, said: dict[str, Any], vmm: Path) -> None:
    group = said["jail"]["cgroup"].lstrip("/")
    os.kill(int(vmm.name), signal.SIGKILL)
    deadline = time.monotonic() + 10
    while (found := {s.id: s for s in Sandbox.list(all=True)}[sandbox.id]).state != "terminated":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert found.state_reason is not None
    assert found.state_reason.code == "vmm-died"
    assert not [tree for tree in TREES.iterdir() if (tree / group).exists()]
