"""An upgraded QEMU: snapshots are rebuilt by themselves, once, and the old one stays until the new one answers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from vm_world import Daemon, home_like, run_daemon

from casemate.sdk import Client, Images, Sandbox

pytestmark = [pytest.mark.vm, pytest.mark.slow]
QEMU = "qemu-system-x86_64"
CASEMATE = [sys.executable, "-m", "casemate.cli"]


@pytest.fixture
def another_qemu() -> Iterator[str]:
    """A PATH on which the same QEMU is another build: one byte longer."""
    installed = shutil.which(QEMU)
    assert installed is not None
    with tempfile.TemporaryDirectory() as folder:  # pytest's own are closed to the daemon's uid
        os.chmod(folder, 0o755)
        binary = Path(folder, QEMU)
        binary.write_bytes(Path(installed).read_bytes() + b"\0")
        binary.chmod(0o755)
        yield f"{folder}:{os.environ['PATH']}"


def until(condition: Callable[[], object], limit_s: float = 120) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def ids(home: Path) -> set[str]:
    """Of the whole ones."""
    return {path.name for path in (home / "snapshots").iterdir() if not path.name.startswith(".")}


def snapshots(home: Path) -> dict[str, dict[str, Any]]:
    """Their manifests."""
    return {name: json.loads((home / "snapshots" / name / "manifest.json").read_bytes()) for name in ids(home)}


def log_of(home: Path) -> list[dict[str, Any]]:
    lines = (home / "daemon.log").read_text().splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")]


def image_ls(daemon: Daemon) -> str:
    env = os.environ | {"CASEMATE_URL": daemon.url}
    return subprocess.run([*CASEMATE, "image", "ls"], env=env, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def old(built: Path, tmp_path: Path, no_trace: None) -> tuple[Path, str]:
    """A home with a snapshot of the installed QEMU: it and the snapshot's id."""
    home = home_like(built, tmp_path)
    ((snapshot_id, manifest),) = snapshots(home).items()
    assert (manifest["format"], len(manifest["mac"])) == (2, 64)
    assert {"avx2", "rdrand"} <= set(manifest["platform"]["cpu_features"].split())
    return home, snapshot_id


def test_an_upgrade_is_rebuilt_once_while_creates_wait(
    old: tuple[Path, str], another_qemu: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, before = old
    build_before = snapshots(home)[before]["platform"]["vmm_sha256"]
    told: list[str] = []
    seen: list[bool] = []  # whether the old one was there while the new one was not

    def look() -> None:
        while before in (found := ids(home)) or not found:
            seen.append(before in found)
            time.sleep(0.02)

    with run_daemon(home, PATH=another_qemu) as daemon, Client(daemon.url) as client, ThreadPoolExecutor(4) as threads:
        monkeypatch.setenv("CASEMATE_URL", daemon.url)
        watcher = threading.Thread(target=look, daemon=True)
        watcher.start()
        until(lambda: client.health()["stored"]["rebuilding"])
        assert "rebuilding" in image_ls(daemon)
        assert "installed is QEMU" in client.health()["stored"]["rebuilding"][0]["why"]

        def create(_: int) -> bool:
            with Sandbox.create(progress=lambda step, message, fraction: told.append(step)) as sandbox:
                return sandbox.commands.run("true").ok

        assert list(threads.map(create, range(3))) == [True, True, True]
        assert told.count("done") == 3
        watcher.join(10)
        assert seen
        assert all(seen)

        until(lambda: not client.health()["stored"]["rebuilding"])
        ((after, manifest),) = snapshots(home).items()
        assert after != before
        assert manifest["platform"]["vmm_sha256"] != build_before
        assert "rebuild" not in image_ls(daemon)

        builds = {path.name for path in (home / "vmm").iterdir() if path.is_dir()}
        assert builds == {build_before, manifest["platform"]["vmm_sha256"]}
        gone = Images(client).prune()["removed"]
        assert [item["name"] for item in gone if item["kind"] == "vmm"] == [build_before]
        with Sandbox.create() as sandbox:  # by the build that was kept
            assert sandbox.commands.run("true").ok
            assert sandbox.info.pid is not None
            check_key_is_closed_to(sandbox.info.pid, home)
    assert sum(line["event"] == "rebuilding a snapshot" for line in log_of(home)) == 1


def check_key_is_closed_to(pid: int, home: Path) -> None:
    """To the very account that the kernel says a VMM has, outside its jail, and with the daemon's group as well."""
    status = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line
    )
    uid, gid = (int(status[name].split()[0]) for name in ("Uid", "Gid"))
    daemon = (home / "seal").stat()
    assert uid not in (0, daemon.st_uid)
    with tempfile.TemporaryDirectory() as folder:  # the home of this test lies in a folder that only root may pass
        os.chmod(folder, 0o755)
        there = Path(folder, "home")
        there.mkdir(mode=0o710)
        (there / "seal").mkdir(mode=home.joinpath("seal").stat().st_mode & 0o777)
        shutil.copy2(home / "seal" / "key", there / "seal" / "key")
        for path in (there, there / "seal", there / "seal" / "key"):
            os.chown(path, daemon.st_uid, daemon.st_gid)
        for groups in ([], [daemon.st_gid]):
            read = subprocess.run(
                ["/bin/cat", str(there / "seal" / "key")],
                user=uid, group=gid, extra_groups=groups, capture_output=True, check=False,
            )  # fmt: skip
            assert read.returncode != 0
            assert read.stdout == b""
            assert b"Permission denied" in read.stderr


def test_no_daemon_starts_without_the_key_to_what_is_sealed(tmp_path: Path, no_trace: None) -> None:
    home = tmp_path / "home"
    (home / "snapshots" / "s1").mkdir(parents=True)
    (home / "snapshots" / "s1" / "manifest.json").write_text('{"format": 2, "mac": "ab"}')
    argv = [sys.executable, "-m", "casemate.daemon", "--ready-fd", "1"]
    done = subprocess.run(argv, env=os.environ | {"CASEMATE_HOME": str(home)}, capture_output=True, timeout=60)
    assert done.returncode == 1
    error = json.loads(done.stdout.splitlines()[0])["error"]
    assert error["code"] == "host-error"
    assert "is gone, and 1 stored machines are sealed with it" in error["message"]
    assert list((home / "seal").iterdir()) == []


def test_device_state_that_was_touched_is_never_loaded(old: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte of it is changed while nobody looks; the next create starts from another, good snapshot."""
    home, before = old
    state = home / "snapshots" / before / "state"
    content = bytearray(state.read_bytes())
    content[len(content) // 2] ^= 1
    state.chmod(0o644)
    state.write_bytes(content)
    state.chmod(0o444)
    with run_daemon(home) as daemon:
        monkeypatch.setenv("CASEMATE_URL", daemon.url)
        with Sandbox.create() as sandbox:
            assert sandbox.commands.run("true").ok
    assert before not in ids(home)
    assert [line["file"] for line in log_of(home) if line["event"] == "a snapshot's file was changed"][:1] == ["state"]
