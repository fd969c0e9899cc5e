"""Shapes that are built on first use, and images that travel: with real guests."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from vm_world import Daemon

from casemate import errors
from casemate.sdk import Client, Images, Sandbox

pytestmark = pytest.mark.vm
CASEMATE = [sys.executable, "-m", "casemate.cli"]
SMALL = {"memory_mib": 256, "disk_mib": 128}


def casemate(*words: str, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*CASEMATE, *words], input=given, capture_output=True, timeout=180, check=False)


def snapshots(name: str) -> list[tuple[int, int]]:
    with Client() as client:
        found = next(image for image in Images(client).list() if image["name"] == name)
    return [(s["memory_mib"], s["disk_mib"]) for s in found["snapshots"]]


def build_on_first_use(image: str) -> None:
    """Six at once, one of them killed while it waits: one build, five running sandboxes of the shape asked for."""
    with pytest.raises(errors.SnapshotMissing, match="256 MiB memory"):
        Sandbox.create(image, **SMALL, build=False)
    gives_up = subprocess.Popen([*CASEMATE, "create", image, "--memory", "256", "--disk", "128"])
    told: dict[int, list[str]] = {n: [] for n in range(5)}
    began = threading.Event()

    def create(n: int) -> tuple[float, int]:
        def tell(step: str, message: str, fraction: float | None) -> None:
            told[n].append(step)
            began.set()

        # create_timeout_s is for the restore: a build takes longer
        with Sandbox.create(image, **SMALL, create_timeout_s=20, progress=tell) as sandbox:
            memory = sandbox.commands.run("grep MemTotal /proc/meminfo").stdout.split()[1]
            return int(memory) / 1024, sandbox.info.memory_mib

    with ThreadPoolExecutor(5) as threads:
        waiting = [threads.submit(create, n) for n in range(5)]
        assert began.wait(60)
        gives_up.kill()
        gives_up.wait()
        for one in waiting:
            seen_mib, said_mib = one.result(timeout=180)
            assert 180 < seen_mib < 256 == said_mib
    assert all(steps[-1] == "done" for steps in told.values())
    assert all("warm" in steps for steps in told.values())
    assert snapshots(image) == [(256, 128)]
    assert not Sandbox.list()


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_an_image_goes_out_comes_in_and_is_built_on_first_use(daemon: Daemon, tmp_path: Path, no_trace: None) -> None:
    tar = tmp_path / "python.tar"
    assert casemate("image", "export", "python", "-o", str(tar)).returncode == 0
    whole = tar.read_bytes()
    assert casemate("image", "export", "python", "-o", "-").stdout == whole

    before = sorted(p.name for p in (daemon.home / "artifacts").iterdir())
    for damaged in (whole[: len(whole) // 2], whole[:70_000_000] + b"\1" + whole[70_000_001:], b"\xff" * 30_000_000):
        done = casemate("image", "import", "-", "--name", "theirs", given=damaged)
        assert done.returncode == 1
        assert done.stderr.startswith(b"error: this is not an image that casemate exported: ")
    cut_off = subprocess.Popen([*CASEMATE, "image", "import", "-", "--name", "theirs"], stdin=subprocess.PIPE)
    assert cut_off.stdin
    cut_off.stdin.write(whole[:100_000_000])
    cut_off.kill()
    cut_off.wait()
    cut_off.stdin.close()

    both = [subprocess.Popen([*CASEMATE, "image", "import", str(tar), "--name", "theirs"]) for _ in range(2)]
    assert [process.wait(60) for process in both] == [0, 0]
    assert sorted(p.name for p in (daemon.home / "artifacts").iterdir()) == before  # the same content is one artifact
    image = json.loads(casemate("image", "inspect", "theirs", "--json").stdout)
    assert (image["version"], image["active"], image["state"]) == (1, True, "ready")

    build_on_first_use("theirs")
    with Sandbox.create("theirs", name="stands-on-it", **SMALL, build=False) as sandbox:
        assert sandbox.info.disk_mib == 128
        assert sandbox.commands.run(["python3", "-c", "print(6 * 7)"]).stdout == "42\n"
        refused = casemate("image", "rm", "--force", "theirs")
        assert refused.returncode == 1
        assert b"image theirs@1 is in use by 1 sandbox: stands-on-it" in refused.stderr
        assert sandbox.commands.run("true").ok
    assert b"what 'theirs' means" in casemate("image", "rm", "theirs").stderr
    assert casemate("image", "rm", "--force", "theirs").returncode == 0
    assert b"theirs" not in casemate("image", "ls").stdout
    assert sorted(p.name for p in (daemon.home / "artifacts").iterdir()) == before  # python needs them
    assert casemate("image", "verify", "python").returncode == 0
    with Sandbox.create() as sandbox:
        assert sandbox.commands.run("true").ok


def test_top_says_what_the_kernel_says(daemon: Daemon, no_trace: None) -> None:
    with Sandbox.create(name="quiet") as quiet, Sandbox.create(name="busy") as busy:
        with busy.commands.start(["sh", "-c", "while :; do :; done"]):
            found = {one["name"]: one for one in json.loads(casemate("top", "--json").stdout)["sandboxes"]}
            assert found["busy"]["cpu_percent"] > 10
            assert found["quiet"]["cpu_percent"] < 40
            assert found["busy"]["guest"]["execs_running"] == 1
            for box in (quiet, busy):
                one = found[box.info.name or ""]
                status = Path(f"/proc/{one['pid']}/status").read_text()
                anonymous_kib = next(int(line.split()[1]) for line in status.splitlines() if "RssAnon" in line)
                assert one["memory_private_bytes"] / 1024 == pytest.approx(anonymous_kib, rel=0.2)
                assert 400 << 20 < one["guest"]["memory_total_bytes"] <= 512 << 20
                assert 0 < one["guest"]["memory_available_bytes"] < one["guest"]["memory_total_bytes"]
        assert (busy.stats().cpu_s or 0) > 0
    lines = casemate("config", "show", "--daemon").stdout.decode().splitlines()
    assert any(line.split()[:3] == ["home", str(daemon.home), "env"] for line in lines)


def test_looking_does_not_keep_a_sandbox_alive(daemon: Daemon, no_trace: None) -> None:
    with Sandbox.create(idle_timeout_s=2) as sandbox:
        deadline = time.monotonic() + 15
        while sandbox.refresh().state == "running":
            assert time.monotonic() < deadline
            with contextlib.suppress(errors.NotFound, errors.StateConflict, errors.GuestError):  # it ends meanwhile
                sandbox.stats()
            time.sleep(0.1)
        assert sandbox.refresh().state_reason.code == "idle"  # type: ignore[union-attr]
