"""``suspend``, ``resume``, ``keep-alive``, and how a resting sandbox looks in the lists."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.unit.sdk.fake_daemon import FakeDaemon, serve

CLI = [sys.executable, "-m", "casemate.cli"]


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDaemon]:
    monkeypatch.setenv("CASEMATE_URL", f"unix://{tmp_path}/d.sock")
    (tmp_path / "boxes").mkdir()
    with serve(tmp_path / "d.sock", tmp_path / "boxes") as fake:
        yield fake


def casemate(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*CLI, *words], capture_output=True, text=True, timeout=60, check=False)


def test_how_it_rests_is_said_at_create(fake: FakeDaemon) -> None:
    made = casemate("create", "--on-idle", "suspend", "--park-after", "0", "--no-auto-resume", "--json")
    found = json.loads(made.stdout)
    assert (found["on_idle"], found["park_after_s"], found["auto_resume"]) == ("suspend", None, False)
    assert casemate("create", "--on-idle", "sleep").returncode == 2


def test_suspend_says_what_is_stored_beside_what_had_changed(fake: FakeDaemon) -> None:
    first, second = (casemate("create", "--name", name).stdout.strip() for name in ("one", "two"))
    done = casemate("suspend", "one", "nobody", "two")
    what = "stored 11.0 MiB of 9.0 MiB dirty and 1.0 MiB written, 1.10 times as much; paused 50 ms, took 120 ms"
    assert done.stdout.splitlines() == [f"{first} {what}", f"{second} {what}"]
    assert (done.returncode, done.stderr.count("error: nobody: ")) == (1, 1)
    told = json.loads(casemate("suspend", "one", "--json").stdout)
    assert told["sandboxes"][0]["suspended"]["stored_bytes"] == 11 << 20
    assert "suspended (11 MiB)" in casemate("ps").stdout
    top = casemate("top", "--once").stdout.splitlines()
    assert [line.split()[3] for line in top[1:]] == ["suspended", "suspended"]
    assert json.loads(casemate("top", "--json").stdout)["sandboxes"][0]["state"] == "suspended"
    assert json.loads(casemate("inspect", "one").stdout)["suspended"]["dirty_bytes"] == 9 << 20


def test_resume_says_how(fake: FakeDaemon) -> None:
    sandbox = casemate("create", "--name", "one").stdout.strip()
    casemate("suspend", "one")
    done = casemate("resume", "one")
    assert (done.returncode, done.stdout.startswith(f"{sandbox} resumed; took ")) == (0, True)
    assert casemate("resume", "--cold", "one").stdout == f"{sandbox} runs already\n"
    casemate("suspend", "one")
    assert "nothing of its memory is left" in casemate("resume", "--cold", "one").stdout
    assert fake.starts == [{"cold": False}, {"cold": True}]
    assert json.loads(casemate("resume", "one", "--json").stdout)["sandboxes"][0]["state"] == "running"
    assert casemate("resume", "nobody").returncode == 1


def test_keep_alive(fake: FakeDaemon) -> None:
    sandbox = casemate("create", "--name", "one").stdout.strip()
    assert casemate("keep-alive", "one", "3600").stdout == f"{sandbox}\n"
    assert fake.starts == [{"for_s": 3600}]


def test_a_parked_one_is_seen(fake: FakeDaemon) -> None:
    casemate("create")
    next(iter(fake.boxes.values())).info["parked"] = True
    assert "running (parked)" in casemate("ps").stdout
    assert casemate("top", "--once").stdout.splitlines()[1].split()[3] == "parked"
