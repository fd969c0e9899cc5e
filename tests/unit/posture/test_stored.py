"""What doctor says of what is stored, with a daemon's report and without."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from casemate import config
from casemate.config import Settings
from casemate.posture import stored
from casemate.posture.check import Check, Status

INSTALLED = b"the installed VMM"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "qemu").write_bytes(INSTALLED)
    for part in ("run", "sandboxes", "vmm"):
        (tmp_path / "home" / part).mkdir(parents=True)
    return config.load({"CASEMATE_HOME": str(tmp_path / "home")})


def check(settings: Settings) -> Check:
    return stored.check_stored(settings, str(settings.home.parent / "qemu"))


def suspend(settings: Settings, sandbox: str, content: bytes) -> str:
    build = hashlib.sha256(content).hexdigest()
    folder = settings.home / "sandboxes" / sandbox / "suspended"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps({"platform": {"vmm_sha256": build}}))
    return build


def tell(settings: Settings, **said: object) -> None:
    body = {"suspended": [], "failed": [], "rebuilding": []} | said
    (settings.run / "upkeep.json").write_text(json.dumps(body))


def test_nothing_is_suspended(settings: Settings) -> None:
    (settings.home / "sandboxes" / "running").mkdir()
    said = check(settings)
    assert (said.status, said.found) == (Status.PASS, "nothing suspended")


def test_an_upgrade_since_the_last_daemon(settings: Settings) -> None:
    suspend(settings, "same", INSTALLED)
    assert check(settings).found == "1 suspended, all made with the installed VMM"
    (settings.home / "vmm" / suspend(settings, "kept", b"older") / "usr").mkdir(parents=True)
    said = check(settings)
    assert said.status is Status.PASS
    assert "the build kept for them can: kept" in said.found
    suspend(settings, "lost", b"oldest")
    said = check(settings)
    assert said.status is Status.WARN
    assert said.found.endswith(": lost")
    assert "resume --cold" in said.hint


def test_made_with_firecracker(settings: Settings) -> None:
    vmm = settings.home / "vmm"
    digest = suspend(settings, "installed", b"firecracker")
    (vmm / digest).mkdir()
    (vmm / "firecracker.json").write_text(json.dumps({"sha256": digest}))
    assert check(settings).found == "1 suspended, all made with the installed VMM"
    (vmm / suspend(settings, "before", b"older")).mkdir()
    said = check(settings)
    assert said.status is Status.PASS
    assert said.found.endswith(": before")


def test_what_the_daemon_found_beyond_the_build(settings: Settings) -> None:
    suspend(settings, "disk", INSTALLED)
    tell(settings, suspended=[{"sandbox": "disk", "kept": False}, {"sandbox": "ended", "kept": False}])
    said = check(settings)
    assert said.status is Status.WARN
    assert said.found.endswith(": disk")  # and nothing of one that is not there any more


def test_a_rebuild_that_failed(settings: Settings) -> None:
    tell(settings, failed=[{"image": "python@1", "shape": "1 vCPU", "error": "no space"}])
    said = check(settings)
    assert said.status is Status.WARN
    assert "python@1 (1 vCPU) could not be rebuilt: no space" in said.found
    assert said.fix == "casemate image build"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"suspended": 1}', '{"suspended": [1], "failed": []}'])
def test_a_report_or_a_manifest_of_another_version_says_nothing(settings: Settings, text: str) -> None:
    (settings.run / "upkeep.json").write_text(text)
    assert check(settings).status is Status.PASS
    suspend(settings, "torn", INSTALLED)
    (settings.home / "sandboxes" / "torn" / "suspended" / "manifest.json").write_text(text)
    assert check(settings).found.endswith(": torn")


def test_no_home_yet(tmp_path: Path) -> None:
    settings = config.load({"CASEMATE_HOME": str(tmp_path / "none")})
    assert check(settings).status is Status.SKIP
