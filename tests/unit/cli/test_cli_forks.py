"""``fork`` and ``snapshot`` as a user types them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.unit.sdk.fake_daemon import FakeDaemon, serve


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDaemon]:
    monkeypatch.setenv("CASEMATE_URL", f"unix://{tmp_path}/d.sock")
    (tmp_path / "boxes").mkdir()
    with serve(tmp_path / "d.sock", tmp_path / "boxes") as fake:
        yield fake


def casemate(*words: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "casemate.cli", *words]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)


def test_the_copies_live_on_and_their_ids_are_printed(fake: FakeDaemon) -> None:
    parent = casemate("create", "--name", "work", "--label", "a=b").stdout.strip()
    done = casemate("fork", "work", "--count", "3")
    assert (done.returncode, done.stderr) == (0, "")
    ids = done.stdout.splitlines()
    listed = json.loads(casemate("ps", "--json").stdout)["sandboxes"]
    assert [box["id"] for box in listed] == [parent, *ids]
    assert all(box["labels"] == {"a": "b"} for box in listed)
    made = json.loads(casemate("fork", "work", "--label", "try=1", "--json").stdout)["sandboxes"]
    assert [(box["forked_from"], box["labels"]) for box in made] == [(parent, {"a": "b", "try": "1"})]
    assert [asked["labels"] for asked in fake.starts] == [None, {"try": "1"}]


def test_what_cannot_be_forked(fake: FakeDaemon) -> None:
    assert casemate("fork", "nobody").stderr.startswith("error: there is no sandbox 'nobody'")
    casemate("create", "--name", "work")
    done = casemate("fork", "work", "--count", "65")
    assert (done.returncode, done.stderr) == (1, "error: count is 65 — 1 to 64\n")
    assert casemate("fork", "work", "--count", "many").returncode == 2
    assert len(fake.boxes) == 1


def test_a_snapshot_prints_what_create_takes(fake: FakeDaemon) -> None:
    casemate("create", "--name", "work")
    assert casemate("snapshot", "work", "--name", "trained", "--tag", "good").stdout == "trained@3\n"
    kept = json.loads(casemate("snapshot", "work", "--name", "trained", "--json").stdout)
    assert (kept["tag"], kept["pause_ms"], kept["took_ms"]) == (None, 12.4, 400.6)
    assert fake.starts == [{"name": "trained", "tag": "good"}, {"name": "trained", "tag": None}]
    assert casemate("snapshot", "work").returncode == 2
