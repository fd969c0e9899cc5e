"""Root in the guest against its own machine: the end is typed, or the machine goes on; the host serves all the same."""

from __future__ import annotations

import contextlib
import os
import signal
import time

import pytest
from tests.faults.world import assert_answers, reason_code, wait_end
from tests.vm.vm_world import Daemon

from casemate.errors import CasemateError
from casemate.sdk import Exited, Sandbox, SandboxInfo

pytestmark = pytest.mark.vm
REBOOT = "import ctypes; ctypes.CDLL(None).reboot(0x{:x})"
POKE = """
import re
# every page of the agent that can be written: from the next instruction on it is no agent
with open("/proc/1/maps") as maps, open("/proc/1/mem", "r+b", 0) as memory:
    for line in maps:
        begin, end, rights = re.match("([0-9a-f]+)-([0-9a-f]+) (....)", line).groups()
        if "w" in rights or "x" in rights:
            try:
                memory.seek(int(begin, 16))
                memory.write(b"\\xff" * (int(end, 16) - int(begin, 16)))
            except OSError:
                pass
"""
UNBIND = "cd /sys/bus/virtio/drivers/virtio_console && for d in virtio*; do echo $d > unbind; done"
RANDOM_TO_PORT = "for p in /dev/vport*; do timeout 2 dd if=/dev/urandom of=$p bs=64k count=64; done"
STOLEN = """
# The agent's own descriptor of the port, taken by root of the same guest: whatever is said there is the guest's word
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
pidfd = os.pidfd_open(1)
for fd in os.listdir("/proc/1/fd"):
    if "vport" in os.readlink(f"/proc/1/fd/{fd}"):
        port = libc.syscall(438, pidfd, int(fd), 0)
        os.set_blocking(port, True)
        for _ in range(64):
            os.write(port, os.urandom(32768))
"""


def run_and_lose(sandbox: Sandbox, command: str | list[str]) -> SandboxInfo:
    """What is under way when the machine goes may end in any error of ours; the record says why."""
    with contextlib.suppress(CasemateError):
        sandbox.commands.run(command, user="root", timeout_s=20)
    return wait_end(sandbox, 30)


@pytest.mark.parametrize(
    "command",
    [
        ["python3", "-c", REBOOT.format(0x01234567)],
        ["python3", "-c", REBOOT.format(0x4321FEDC)],
        "echo b > /proc/sysrq-trigger",
        "echo o > /proc/sysrq-trigger; sleep 20",
        "echo 1 > /proc/sys/kernel/sysrq; echo c > /proc/sysrq-trigger",
    ],
    ids=["reboot", "power-off", "sysrq-b", "sysrq-o", "panic"],
)
def test_a_machine_that_is_ended_from_inside(sandbox: Sandbox, command: str | list[str]) -> None:
    assert reason_code(run_and_lose(sandbox, command)) == "vmm-died"


def test_an_agent_that_is_overwritten(sandbox: Sandbox) -> None:
    assert reason_code(run_and_lose(sandbox, ["python3", "-c", POKE])) in ("vmm-died", "guest-silent")


def test_random_bytes_where_the_agent_speaks(sandbox: Sandbox) -> None:
    found = run_and_lose(sandbox, ["python3", "-c", STOLEN])
    assert reason_code(found) == "protocol-violation"


@pytest.mark.parametrize("command", ["kill -9 1; kill -STOP 1; kill -TERM 1", RANDOM_TO_PORT])
def test_what_root_cannot_do_to_the_agent(sandbox: Sandbox, command: str) -> None:
    sandbox.commands.run(command, user="root", timeout_s=20)
    assert_answers(sandbox)
    assert sandbox.commands.run("echo here").stdout == "here\n"


def test_a_port_that_is_taken_away(sandbox: Sandbox) -> None:
    assert reason_code(run_and_lose(sandbox, UNBIND)) in ("guest-silent", "vmm-died", "protocol-violation")


def test_a_root_that_leaves_its_cgroup_does_not_outlast_its_time(sandbox: Sandbox) -> None:
    started = time.monotonic()
    escape = "echo $$ > /sys/fs/cgroup/cgroup.procs; trap '' TERM INT HUP; sleep 600"
    result = sandbox.commands.run(escape, user="root", timeout_s=2)
    assert result.end != Exited(0)
    assert time.monotonic() - started < 10


@pytest.mark.skipif(os.geteuid() != 0, reason="stops another user's process")
def test_a_vmm_that_is_stopped_from_outside(sandbox: Sandbox, daemon: Daemon) -> None:
    pid = sandbox.info.pid
    assert pid
    os.kill(pid, signal.SIGSTOP)
    started = time.monotonic()
    with pytest.raises(CasemateError) as caught:
        sandbox.commands.run("true")
    assert caught.value.code == "agent-silent"
    assert reason_code(wait_end(sandbox)) == "guest-silent"
    assert time.monotonic() - started < 25
