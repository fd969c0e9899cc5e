"""``casemate snapshots`` and the SDK under it, against the SDK's fake daemon."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest
from tests.unit.sdk.fake_daemon import FakeDaemon, serve
from tests.unit.sdk.fake_snapshots import BUNDLE, DIGEST

from casemate import errors
from casemate.sdk import AsyncClient, Client, Snapshots

CLI = [sys.executable, "-m", "casemate.cli", "snapshots"]


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDaemon]:
    monkeypatch.setenv("CASEMATE_URL", f"unix://{tmp_path}/d.sock")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "boxes").mkdir()
    with serve(tmp_path / "d.sock", tmp_path / "boxes") as fake:
        yield fake


def snapshots(*words: str, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*CLI, *words], input=given, capture_output=True, timeout=60, check=False, env=os.environ)


def test_ls_and_inspect(fake: FakeDaemon) -> None:
    head, older, active = snapshots("ls").stdout.decode().splitlines()
    assert head.split() == ["SNAPSHOT", "TAG", "STATE", "SIZE", "PARENT", "USED", "BY", "AGE"]
    assert older.startswith("work@2    -     ready")
    assert "alpha, sandbox aaaaaaaa" in older
    assert active.startswith("work@3    good  ready (active)  100 MiB  python@1  -")
    assert [one["version"] for one in json.loads(snapshots("ls", "--json").stdout)["snapshots"]] == [2, 3]
    assert json.loads(snapshots("inspect", "work:good", "--json").stdout)["misfits"] == []
    assert snapshots("inspect", "none").stderr.startswith(b"error: there is no snapshot 'none'")


def test_rm_and_prune(fake: FakeDaemon) -> None:
    assert snapshots("rm", "work@3").stdout == b"Removed work@3: 100 MiB\n"
    refused = snapshots("rm", "work@2")
    assert (refused.returncode, b"in use by 1 sandbox: alpha" in refused.stderr) == (1, True)
    assert snapshots("prune", "--dry-run").stdout.splitlines() == [
        b"version work@1: it failed (1 MiB)", b"Would free 1 MiB.",
    ]  # fmt: skip
    assert json.loads(snapshots("prune", "--json").stdout)["dry_run"] is False


def test_what_an_export_prints_is_what_an_import_takes(fake: FakeDaemon, tmp_path: Path) -> None:
    done = snapshots("export", "work:good", "-o", "x.tar")
    assert done.stdout.decode() == f"{DIGEST}  x.tar\n"
    assert (tmp_path / "x.tar").read_bytes() == BUNDLE
    assert (tmp_path / "x.tar").stat().st_mode & 0o777 == 0o600  # it has secrets
    assert subprocess.run(["sha256sum", "-c"], input=done.stdout, capture_output=True, check=False).returncode == 0
    piped = snapshots("export", "work")
    assert (piped.stdout, piped.stderr) == (BUNDLE, f"{DIGEST}  -\n".encode())
    told = json.loads(snapshots("export", "work", "-o", "y.tar", "--no-base", "--json").stdout)
    assert (told["file"], told["size_bytes"]) == ("y.tar", 10)
    assert snapshots("import", "x.tar", "--sha256", DIGEST).stdout == b"work@4\n"
    again = snapshots("import", "-", "--sha256", DIGEST, "--name", "mine", "--json", given=BUNDLE)
    assert json.loads(again.stdout)["name"] == "mine"
    assert b"its sha256 is another" in snapshots("import", "x.tar", "--sha256", "0" * 64).stderr
    assert snapshots("import", "x.tar").returncode == 2  # never without
    assert snapshots("export", "none", "-o", "z.tar").returncode == 1
    assert not (tmp_path / "z.tar").exists()


def test_the_sdk_says_the_same_with_and_without_await(fake: FakeDaemon) -> None:
    with Client() as client:
        assert isinstance(client.snapshots, Snapshots)
        assert [one["version"] for one in client.snapshots.list()] == [2, 3]
        with pytest.raises(errors.StateConflict):
            client.snapshots.remove("work@2")
        assert client.snapshots.import_(BUNDLE, sha256=DIGEST)["version"] == 4

    async def main() -> None:
        async with AsyncClient() as client:
            async with client.snapshots.export("work", base=False) as pieces:
                assert b"".join([piece async for piece in pieces]) == BUNDLE[:10]
            assert (await client.snapshots.get("work"))["name"] == "work"
            assert (await client.snapshots.prune(dry_run=True))["dry_run"] is True

    anyio.run(main)
