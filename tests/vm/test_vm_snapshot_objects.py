"""Snapshots as objects, of real sandboxes: used by name and tag, let go, carried to a second home, of nobody else's."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from vm_world import Daemon, home_like, run_daemon

from casemate import errors
from casemate.sdk import Client, Sandbox

pytestmark = [pytest.mark.vm, pytest.mark.slow]
CASEMATE = [sys.executable, "-m", "casemate.cli"]
COUNTS = "import time, sys\nwhile True:\n    sys.stdout.write('.'); sys.stdout.flush(); time.sleep(0.05)"


def casemate(*words: str, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*CASEMATE, *words], input=given, capture_output=True, timeout=180, check=False)


def said(*words: str) -> Any:
    done = casemate(*words, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def kept(daemon: Daemon) -> Iterator[dict[str, Any]]:
    """A sandbox with a variable, a file and a process, kept as ``work:good``; it lives on as ``parent``."""
    with Sandbox.create(name="parent", memory_mib=512) as parent:
        parent.run_code("chosen = 4711")
        parent.files.write("/home/user/note", b"written before")
        with parent.commands.start(["python3", "-c", COUNTS]):
            yield dict(parent.snapshot("work", "good"))


def test_it_runs_from_its_name_and_its_tag_in_its_own_shape(kept: dict[str, Any]) -> None:
    assert (kept["name"], kept["version"], kept["tag"], kept["state"]) == ("work", 1, "good", "ready")
    assert (kept["contains_session_state"], kept["parent"].partition("@")[0]) == (True, "python")
    for ref in ("work", "work@1", "work:good"):
        with Sandbox.create(ref) as copy:
            assert copy.run_code("chosen").text == "4711"
            assert copy.files.read("/home/user/note") == b"written before"
            assert copy.info.image == "work@1"
            assert len(copy.commands.run(["pgrep", "-f", "sys.stdout.write"]).stdout.split()) == 1
    with pytest.raises(errors.InvalidSpec, match="it has no other shape"):
        Sandbox.create("work", memory_mib=256)
    with pytest.raises(errors.NotFound):
        Sandbox.create("work:bad")


def test_it_is_listed_measured_and_names_who_stands_on_it(kept: dict[str, Any]) -> None:
    [row] = [line for line in casemate("snapshots", "ls").stdout.decode().splitlines() if line.startswith("work@1")]
    assert "good" in row
    whole = said("snapshots", "inspect", "work:good")
    folder_bytes = whole["own_bytes"]
    assert 20 << 20 < folder_bytes < 560 << 20
    assert whole["shared_bytes"] > 50 << 20
    assert (whole["misfits"], whole["broken"], whole["users"]) == ([], None, [])
    assert any(image["name"] == "work" and image["tag"] == "good" for image in said("image", "ls")["images"])
    with Sandbox.create("work", name="stands-on-it") as copy:
        for refused in (casemate("snapshots", "rm", "work@1"), casemate("image", "rm", "--force", "work@1")):
            assert refused.returncode == 1
            assert b"in use by 1 sandbox: stands-on-it" in refused.stderr
        copy.suspend()
        assert b"in use by 1 sandbox: stands-on-it" in casemate("snapshots", "rm", "work").stderr
        [user] = said("snapshots", "inspect", "work")["users"]
        assert (user["name"], user["state"]) == ("stands-on-it", "suspended")
        copy.resume()
        assert copy.run_code("chosen").text == "4711"


def test_a_pool_of_it_serves_and_is_named(kept: dict[str, Any]) -> None:
    casemate("pool", "set", "work:good", "--min-ready", "1")
    with Client() as client:
        (pool,) = [pool for pool in client.pools.list() if pool["image"] == "work:good"]
        assert (pool["memory_mib"], pool["disk_mib"]) == (kept["memory_mib"], kept["disk_mib"])
        refused = casemate("snapshots", "rm", "work")
        assert refused.returncode == 1
        assert pool["id"].encode() in refused.stderr or b"kept ready by a pool" in refused.stderr
    assert casemate("pool", "rm", "work:good").returncode == 0


def test_prune_takes_what_nothing_means(kept: dict[str, Any]) -> None:
    with Client() as client:
        Sandbox.connect("parent", client=client).snapshot("scratch")
    said("snapshots", "prune")  # what others' failures have left
    with Client() as client:
        Sandbox.connect("parent", client=client).snapshot("scratch")
    planned = said("snapshots", "prune", "--dry-run")
    assert [item["name"] for item in planned["removed"] if item["kind"] == "version"] == ["scratch@1"]
    said("image", "prune")
    assert {one["name"]: one["version"] for one in said("snapshots", "ls")["snapshots"]} == {"work": 1, "scratch": 2}
    gone = said("snapshots", "prune")
    assert gone["size_bytes"] == planned["size_bytes"] > 20 << 20
    assert casemate("snapshots", "rm", "scratch").returncode == 0
    assert [one["name"] for one in said("snapshots", "ls")["snapshots"]] == ["work"]


def test_it_goes_to_another_home_and_runs_there(
    kept: dict[str, Any], built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tar = tmp_path / "work.tar"
    done = casemate("snapshots", "export", "work:good", "-o", str(tar))
    assert done.returncode == 0, done.stderr
    digest, _, path = done.stdout.decode().strip().partition("  ")
    assert path == str(tar)
    with run_daemon(home_like(built, tmp_path), CASEMATE_LISTEN="127.0.0.1:0") as other:
        monkeypatch.setenv("CASEMATE_URL", other.url)
        before = sorted(path.name for path in (other.home / "snapshots").iterdir())
        data = bytearray(tar.read_bytes())
        data[len(data) // 2] ^= 1
        for words, given in (
            (("-", "--sha256", digest), bytes(data)),
            (("-", "--sha256", "0" * 64), None),
            (("-", "--sha256", digest), bytes(data[: len(data) // 2])),
        ):
            refused = casemate("snapshots", "import", *words, given=tar.read_bytes() if given is None else given)
            assert refused.returncode == 1
        assert sorted(path.name for path in (other.home / "snapshots").iterdir()) == before
        taken = said("snapshots", "import", str(tar), "--sha256", digest)
        assert (taken["name"], taken["tag"], taken["contains_session_state"]) == ("work", "good", True)
        with Sandbox.create("work:good") as copy:
            assert copy.run_code("chosen").text == "4711"
            assert copy.files.read("/home/user/note") == b"written before"
        check_it_is_nobody_elses(other, taken["snapshot"])
        gone = said("snapshots", "rm", "work:good")
        assert gone["size_bytes"] == taken["own_bytes"]
        assert sorted(path.name for path in (other.home / "snapshots").iterdir()) == before


def check_it_is_nobody_elses(daemon: Daemon, snapshot_id: str) -> None:
    headers = {"authorization": f"Bearer {said('key', 'create', '--tenant', 'mallory')['key']}"}
    with httpx.Client(base_url=f"http://{daemon.listen}", headers=headers, timeout=60) as client:
        assert client.get("/v1/snapshots").json()["snapshots"] == []
        for answer in (
            client.get("/v1/snapshots/work"),
            client.get("/v1/snapshots/work:good/export"),
            client.get(f"/v1/snapshots/{snapshot_id}"),
            client.delete(f"/v1/snapshots/{snapshot_id}"),
            client.get("/v1/images/work"),
            client.post("/v1/sandboxes", json={"image": "work"}),
        ):
            assert (answer.status_code, answer.json()["code"]) == (404, "not-found"), answer.text
        refused = client.post("/v1/snapshots/import", params={"sha256": "0" * 64}, content=b"x")
        assert refused.status_code == 403
