"""Orphans are known by what the kernel says of them, and nobody else's process is touched."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from casemate.config import Settings
from casemate.host import sweep_kernel

GUEST = "0123456789abcdefghjkmnpqrs"
UID_BASE = 2_110_000_000
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be many")


@pytest.fixture
def settings() -> Iterator[Settings]:
    """A home whose VMM is a shell; other uids can reach it."""
    with tempfile.TemporaryDirectory(prefix="cm-") as folder:
        home = Path(folder)
        home.chmod(0o755)
        (home / "vmm/0/usr/bin").mkdir(parents=True)
        shutil.copy("/bin/sh", home / "vmm/0/usr/bin/vmm")
        (home / "sandboxes").mkdir()
        yield Settings(home, uid_base=UID_BASE, uid_count=16)


@contextmanager
def running(
    binary: str | Path, guest: str = GUEST, uid: int | None = None, *held: int
) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [binary, "-c", "read line", f"guest={guest}"], stdin=subprocess.PIPE, user=uid, pass_fds=held
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def vmm(settings: Settings) -> Path:
    return settings.home / "vmm" / "0" / "usr" / "bin" / "vmm"


def test_there_is_nothing_as_a_rule(settings: Settings) -> None:
    swept = sweep_kernel(settings)
    assert (swept.processes, swept.mounts, swept.alive, swept.stuck) == ([], [], [], [])


def test_what_runs_the_homes_own_binary_is_killed(settings: Settings, no_trace: None) -> None:
    with running(vmm(settings)) as orphan:
        assert sweep_kernel(settings).processes == [f"{GUEST} (pid {orphan.pid})"]
        assert orphan.wait(5) == -9


def test_a_jail_that_was_only_being_made_is_killed(settings: Settings, no_trace: None) -> None:
    closure = os.open(settings.home / "vmm" / "0" / "usr", os.O_PATH)
    try:
        with running("/bin/sh", GUEST, None, closure) as orphan:
            assert sweep_kernel(settings).processes == [f"{GUEST} (pid {orphan.pid})"]
            assert orphan.wait(5) == -9
    finally:
        os.close(closure)


@pytest.mark.parametrize("guest", [GUEST, "not-an-id"])
def test_another_binary_or_no_guest_is_not_ours(settings: Settings, guest: str, no_trace: None) -> None:
    binary = "/bin/sh" if guest == GUEST else vmm(settings)
    with running(binary, guest) as other:
        assert sweep_kernel(settings).processes == []
        assert other.poll() is None


@as_root
@pytest.mark.parametrize(("uid", "ours"), [(UID_BASE + 1, True), (UID_BASE + 16, False), (1000, False)])
def test_a_uid_that_is_not_ours_to_give_is_left_alone(settings: Settings, uid: int, ours: bool, no_trace: None) -> None:
    with running(vmm(settings), uid=uid):
        assert bool(sweep_kernel(settings).processes) is ours


@pytest.mark.parametrize("same_home", [True, False])
def test_a_launcher_is_killed_if_it_was_started_for_this_home(
    settings: Settings, same_home: bool, no_trace: None
) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    home = settings.home if same_home else settings.home.parent
    argv = [sys.executable, "-I", "-m", "casemate.host.launcher", str(theirs.fileno()), str(UID_BASE), "16"]
    argv += ["casemate-test", "weak"]
    with ours:
        with theirs:
            env = os.environ | {"CASEMATE_HOME": str(home)}
            process = subprocess.Popen(argv, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, env=env)
        while not Path(f"/proc/{process.pid}/cmdline").read_bytes():
            time.sleep(0.001)  # Popen returns when the exec is certain, a moment before the kernel knows its words
        told = sweep_kernel(settings).processes
        assert told == ([f"launcher (pid {process.pid})"] if same_home else [])
    assert process.wait(20) == (-9 if same_home else 0)


@as_root
def test_what_is_mounted_below_the_sandboxes_is_detached(settings: Settings, no_trace: None) -> None:
    place = settings.home / "sandboxes" / "a b"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", place], check=True)
    assert sweep_kernel(settings).mounts == [str(place)]
    assert not place.is_mount()
