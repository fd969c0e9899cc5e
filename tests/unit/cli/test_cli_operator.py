"""``key``, ``events``, ``audit`` and ``ps --label`` as a user has them; the daemon is the SDK's fake."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.unit.sdk.fake_daemon import FakeDaemon, serve

from casemate.cli.options import seconds_of
from casemate.errors import InvalidSpec

CLI = [sys.executable, "-m", "casemate.cli"]


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDaemon]:
    monkeypatch.setenv("CASEMATE_URL", f"unix://{tmp_path}/d.sock")
    (tmp_path / "boxes").mkdir()
    with serve(tmp_path / "d.sock", tmp_path / "boxes") as fake:
        yield fake


def casemate(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*CLI, *words], capture_output=True, text=True, timeout=60, check=False)


def test_a_keys_life(fake: FakeDaemon) -> None:
    made = casemate("key", "create", "--name", "ci", "--scope", "sandboxes:write", "--expires", "30d")
    assert (made.returncode, made.stdout) == (0, "cm_000000000000_secret\n")
    assert fake.keys[0]["scopes"] == ["sandboxes:write"]
    listed = casemate("key", "ls")
    assert "secret" not in listed.stdout
    assert "good for 30.0 d" in listed.stdout
    assert json.loads(casemate("key", "ls", "--json").stdout)["keys"][0]["name"] == "ci"
    assert casemate("key", "revoke", made.stdout.strip()).stdout == "000000000000\n"
    assert "revoked" in casemate("key", "ls").stdout
    gone = casemate("key", "revoke", "nope")
    assert (gone.returncode, gone.stderr) == (1, "error: there is no such key\n")


@pytest.mark.parametrize("word", ["", "30", "d", "0d", "-1d", "1w", "٣d", "1.5h"])
def test_what_is_no_time(word: str) -> None:
    with pytest.raises(InvalidSpec, match="--expires"):
        seconds_of("--expires", word)


def test_events_are_lines_and_what_strangers_said_is_harmless(fake: FakeDaemon) -> None:
    printed = casemate("events").stdout.splitlines()
    assert [line.split()[3] for line in printed] == ["s1", "s2"]
    assert "\x1b" not in "".join(printed)
    followed = casemate("events", "-f", "--json")
    assert [json.loads(line)["id"] for line in followed.stdout.splitlines()] == [1, 2, 3]
    assert "before it was complete" in followed.stderr  # a stream of events has no end of its own


def test_a_verification_says_what_it_found(fake: FakeDaemon) -> None:
    good = casemate("audit", "verify")
    assert good.returncode == 0
    assert "2 events, unbroken" in good.stdout
    assert "warning: event 1" in good.stdout
    fake.broken = {"id": 2, "why": "it was changed"}
    broken = casemate("audit", "verify")
    assert (broken.returncode, "broken at event 2: it was changed" in broken.stdout) == (1, True)
    told = casemate("audit", "verify", "--json")
    assert (told.returncode, json.loads(told.stdout)["ok"]) == (1, False)


def test_ps_by_label(fake: FakeDaemon) -> None:
    casemate("create", "--name", "one", "--label", "a=1")
    casemate("create", "--name", "two", "--label", "a=2")
    assert "two" not in casemate("ps", "--label", "a=1").stdout
    assert "one" in casemate("ps", "--label", "a=1").stdout
    assert len(casemate("ps").stdout.splitlines()) == 3


def test_serve_refuses_what_is_not_safe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CASEMATE_HOME", str(tmp_path / "home"))
    done = casemate("serve", "--listen", "0.0.0.0:0")
    assert done.returncode == 1
    assert "--behind-proxy" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_pools_life(fake: FakeDaemon) -> None:
    made = casemate("pool", "set", "python", "--min-ready", "4", "--max-ready", "8", "--memory", "256", "--shared")
    assert (made.returncode, made.stdout) == (0, "7k5qa364e9e1v0\n"), made.stderr
    assert (fake.pools["python"]["max_ready"], fake.pools["python"]["target_utilization"]) == (8, 0.7)
    head, row = casemate("pool", "ls").stdout.splitlines()
    assert head.split()[:4] == ["ID", "IMAGE", "SHAPE", "READY"]
    for cell in ("python (shared)", "1/256/1024", "3/4", "4-8", "2 (2 empty)", "31/44 ms", "900 ms", "filling"):
        assert cell in row
    assert json.loads(casemate("pool", "ls", "--json").stdout)["pools"][0]["hits"] == 7
    assert casemate("pool", "rm", "python").stdout == "7k5qa364e9e1v0\n"
    assert fake.pools == {}
    assert casemate("pool", "set", "python").returncode == 2  # how many?
