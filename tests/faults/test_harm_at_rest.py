"""The VMM is killed, or the disk runs full, at every named step of a suspend and of a resume.

The daemon stops itself at each step (``stop:``), so that the harm is done at that very moment; then it goes on.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from fault_world import Running, daemon_on, folders, until, vmms
from rest_world import RESUME, SUSPEND, Act, Follower, Stepper

from casemate.errors import CasemateError
from casemate.sdk import Sandbox

pytestmark = [pytest.mark.vm, pytest.mark.slow]
SMALL_MIB = 400


def kill_vmm(home: Path, sandbox_id: str) -> None:
    for pid, name in vmms(home).items():
        if name == sandbox_id:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
def test_the_vmm_is_killed_in_a_suspend(home: Path, no_trace: None) -> None:
    """It ends as any whose VMM dies; sealed before, it is suspended: then nobody needs the VMM any more."""
    with daemon_on(home, CASEMATE_FAULT="stop:suspend-*") as running:
        stepper = Stepper(running.process.pid)
        for n, step in enumerate(SUSPEND):
            sandbox = Sandbox.create(client=running.client)
            follower = Follower(str(running.client.target), sandbox.id)
            stepper.arm(n, lambda sandbox=sandbox: kill_vmm(home, sandbox.id))
            try:
                sandbox.suspend()
            except CasemateError:
                until(lambda sandbox=sandbox: sandbox.refresh().state == "terminated", f"{step}: its end")
                reason = sandbox.refresh().state_reason
                assert reason is not None
                assert reason.code in ("vmm-died", "guest-silent"), (step, reason)
                assert follower.wait_end() is not None
                assert sandbox.id not in folders(home), step
            else:
                assert step in ("suspend-disk", "suspend-seal"), step  # the VMM has given all by then
                assert sandbox.resume().state == "running"
                follower.goes_on_or_is_taken_up(sandbox)
                sandbox.kill()
                follower.wait_end()
            assert stepper.stops > n, step
            assert not vmms(home), step
            assert running.client.health()["admission"]["memory_reserved_mib"] == 0


@pytest.mark.timeout(300)
def test_the_vmm_is_killed_in_a_resume(home: Path, no_trace: None) -> None:
    """It stays suspended, and the next resume is as good as the first."""
    with daemon_on(home, CASEMATE_FAULT="stop:resume-*") as running:
        stepper = Stepper(running.process.pid)
        sandbox = Sandbox.create(client=running.client)
        follower = Follower(str(running.client.target), sandbox.id)
        sandbox.commands.run("echo kept > plain", check=True)
        sandbox.suspend()
        for n, step in enumerate(RESUME):
            stepper.arm(n, lambda: kill_vmm(home, sandbox.id))
            if n <= RESUME.index("resume-machine"):  # there is none yet
                continue
            if step == "resume-run":  # it may be noticed only when what was stored has been dropped
                again_and_again(sandbox, stepper, follower.exec_id)
                stepper.arm(n, lambda: kill_vmm(home, sandbox.id))
                sandbox.suspend()
                refusal(sandbox.resume)
                until(lambda: sandbox.refresh().state in ("suspended", "terminated"), "its end")
                sandbox.kill()
                continue
            with pytest.raises(CasemateError) as raised:
                sandbox.resume()
            assert sandbox.refresh().state == "suspended", (step, raised.value)
            assert not vmms(home), step
        follower.wait_end()
        assert folders(home) == set()


def again_and_again(sandbox: Sandbox, stepper: Stepper, exec_id: str) -> None:
    """What was resumed in vain so often is whole."""
    stepper.arm(-1, lambda: None)
    sandbox.resume()
    assert sandbox.commands.run("cat plain").stdout == "kept\n"
    with sandbox.commands.attach(exec_id) as again:
        pieces = again.output()
        text = next(iter(pieces)).data + next(iter(pieces)).data
    assert text.startswith(b"1\n2\n3\n")


def refusal(act: Act) -> str | None:
    """The code of the error that it raises."""
    try:
        act()
    except CasemateError as error:
        return error.code
    return None


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("only root can mount a disk that is soon full")
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SMALL_MIB}m,mode=0700", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def fill(folder: Path) -> None:
    free = os.statvfs(folder)
    with (folder / "filler").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, free.f_bavail * free.f_frsize)


def unfill(folder: Path) -> None:
    (folder / "filler").unlink(missing_ok=True)


@pytest.mark.timeout(300)
def test_the_disk_runs_full_in_a_suspend_and_in_a_resume(home: Path, no_trace: None) -> None:
    with small_disk(home / "sandboxes") as disk:
        with full_disk_daemon(home, "stop:suspend-*") as (running, stepper):
            sandbox = Sandbox.create(client=running.client)
            follower = Follower(str(running.client.target), sandbox.id)
            refused = 0
            for n, step in enumerate(SUSPEND):
                stepper.arm(n, lambda: fill(disk))
                if refusal(sandbox.suspend) == "host-full":
                    assert sandbox.refresh().state == "running", step
                    assert {p.name for p in (disk / sandbox.id).iterdir()} <= {"meta.json", "disk", "meta.json.tmp"}
                    refused += 1
                else:
                    unfill(disk)
                    stepper.arm(-1, lambda: None)
                    sandbox.resume()
                unfill(disk)
                follower.goes_on()
                assert sandbox.commands.run("echo here").stdout == "here\n", step
            assert refused >= 5
            sandbox.suspend()
            sandbox.resume()
            follower.goes_on()
            sandbox.kill()
            follower.wait_end()
        with full_disk_daemon(home, "stop:resume-*") as (running, stepper):
            sandbox = Sandbox.create(client=running.client)
            follower = Follower(str(running.client.target), sandbox.id)
            sandbox.suspend()
            refused = 0
            for n, step in enumerate(RESUME):
                stepper.arm(n, lambda: fill(disk))
                if refusal(sandbox.resume) == "host-full":
                    assert sandbox.refresh().state == "suspended", step
                    refused += 1
                else:
                    assert sandbox.refresh().state == "running", step
                    follower.goes_on()
                unfill(disk)
                stepper.arm(-1, lambda: None)
                sandbox.suspend()
            assert refused >= 3
            sandbox.resume()
            follower.goes_on()
            sandbox.kill()
            follower.wait_end()
            assert not list(disk.iterdir())


@contextmanager
def full_disk_daemon(home: Path, fault: str) -> Iterator[tuple[Running, Stepper]]:
    with daemon_on(home, CASEMATE_FAULT=fault, CASEMATE_DISK_BUDGET_MIB="9999") as running:
        yield running, Stepper(running.process.pid)
