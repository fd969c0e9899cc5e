"""What a VMM process is and sees, read from the kernel's account of it, never from our own."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from vm_world import Daemon

from casemate.sdk import Sandbox

pytestmark = [pytest.mark.vm, pytest.mark.skipif(os.geteuid() != 0, reason="reads other users' /proc entries")]
NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts")


@pytest.fixture
def vmm(sandbox: Sandbox) -> Path:
    """/proc/PID of the sandbox's VMM: the one process that has the sandbox's id in its command line."""
    assert sandbox.info.pid
    process = Path(f"/proc/{sandbox.info.pid}")
    assert f"guest={sandbox.id}".encode() in (process / "cmdline").read_bytes().split(b"\0")
    return process


def status(process: Path) -> dict[str, str]:
    lines = (process / "status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def test_it_has_no_capability_no_privilege_and_a_filter(vmm: Path) -> None:
    found = status(vmm)
    assert {found[f"Cap{kind}"] for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {"0" * 16}
    assert found["NoNewPrivs"] == "1"
    assert found["Seccomp"] == "2"


def test_it_has_a_uid_of_its_own(vmm: Path, daemon: Daemon) -> None:
    uids = set(status(vmm)["Uid"].split())
    other = status(Path(f"/proc/{daemon.pid}"))
    assert len(uids) == 1
    assert uids.isdisjoint({"0", *other["Uid"].split()})
    assert "0" not in other["Uid"].split(), "the daemon itself is root"
    with Sandbox.create() as second:
        assert second.info.pid
        assert uids.isdisjoint(status(Path(f"/proc/{second.info.pid}"))["Uid"].split())


def test_it_is_in_namespaces_of_its_own(vmm: Path) -> None:
    for kind in NAMESPACES:
        assert os.readlink(vmm / "ns" / kind) != os.readlink(f"/proc/self/ns/{kind}"), kind
    devices = [line.split(":")[0].strip() for line in (vmm / "net/dev").read_text().splitlines()[2:]]
    assert devices == ["lo"]


def test_it_sees_only_its_closure_and_this_sandboxs_files(vmm: Path) -> None:
    root = vmm / "root"
    assert sorted(p.name for p in root.iterdir()) == ["bin", "guest", "lib", "lib64", "usr"]
    assert sorted(p.name for p in (root / "guest").iterdir()) == ["memory"]
    assert not (root / "usr/bin/sh").exists()
    assert not (root / "usr/bin/env").exists()


def test_nothing_shared_is_open_for_writing(vmm: Path, sandbox: Sandbox) -> None:
    writable = []
    for info in (vmm / "fdinfo").iterdir():
        flags = next(line for line in info.read_text().splitlines() if line.startswith("flags:"))
        target = os.readlink(vmm / "fd" / info.name)
        if int(flags.split()[1], 8) & os.O_ACCMODE != os.O_RDONLY and target.startswith("/"):
            writable.append(target)
    own = [target for target in writable if f"sandboxes/{sandbox.id}/disk" in target]
    assert own, "the sandbox's disk must be writable"
    assert {t for t in writable if t not in own} <= {"/dev/null"}
    for line in (vmm / "maps").read_text().splitlines():
        fields = line.split()
        if len(fields) > 5 and fields[5].startswith("/") and "w" in fields[1]:
            assert "s" not in fields[1], f"a shared writable mapping: {line}"


def test_killed_from_outside_is_a_typed_end(sandbox: Sandbox, vmm: Path) -> None:
    os.kill(int(vmm.name), signal.SIGKILL)
    deadline = time.monotonic() + 10
    while (found := {s.id: s for s in Sandbox.list(all=True)}[sandbox.id]).state != "terminated":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert found.state_reason is not None
    assert found.state_reason.code == "vmm-died"
