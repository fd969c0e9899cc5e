"""Files, clock, cgroup tree, uids: what each check makes of what it finds."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from casemate import config
from casemate.config import Settings
from casemate.posture import keeping
from casemate.posture.check import Status


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    home = tmp_path / "home"
    home.mkdir(mode=0o710)
    for part in ("run", "sandboxes", "seal"):
        (home / part).mkdir(mode=0o700)
    (home / "casemate.db").touch(mode=0o600)
    return config.load({"CASEMATE_HOME": str(home)})


def test_a_home_of_its_owner_only(settings: Settings) -> None:
    assert keeping.check_home(settings).status is Status.PASS
    assert keeping.check_home(config.load({"CASEMATE_HOME": "/nowhere/at/all"})).status is Status.SKIP


@pytest.mark.parametrize(
    ("part", "mode", "word"),
    [
        (".", 0o770, "writable by others (mode 0770)"),
        (".", 0o777, "writable by others"),
        ("run", 0o755, "readable by others"),
        ("sandboxes", 0o722, "writable by others"),
        ("seal", 0o704, "readable by others"),
        ("casemate.db", 0o644, "readable by others (mode 0644)"),
    ],
)
def test_a_home_that_others_reach(settings: Settings, part: str, mode: int, word: str) -> None:
    (settings.home / part).chmod(mode)
    check = keeping.check_home(settings)
    assert check.status is Status.WARN
    assert word in check.found
    assert str(settings.home) in check.fix


def test_a_home_that_could_be_exchanged(settings: Settings) -> None:
    settings.home.parent.chmod(0o777)
    assert "writable by everybody" in keeping.check_home(settings).found
    settings.home.parent.chmod(0o1777)
    assert keeping.check_home(settings).status is Status.PASS


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_home_that_is_somebody_elses(settings: Settings) -> None:
    os.chown(settings.home / "run", 12345, -1)
    assert "belongs to uid 12345" in keeping.check_home(settings).found


def test_time() -> None:
    assert keeping.check_time_sync(0).status is Status.PASS
    assert keeping.check_time_sync(keeping.STA_UNSYNC | 1).status is Status.WARN
    assert keeping._clock_status() is not None


@pytest.mark.parametrize(
    ("mounts", "release", "status"),
    [
        ("c /sys/fs/cgroup cgroup2 rw,favordynmods 0 0", "6.1.0-9-amd64", Status.PASS),
        ("c /sys/fs/cgroup cgroup2 rw,nosuid 0 0", "6.1.0-9-amd64", Status.WARN),
        ("c /sys/fs/cgroup cgroup2 rw,nosuid 0 0", "5.15.0", Status.SKIP),
        ("c /sys/fs/cgroup/memory cgroup rw 0 0", "6.1.0", Status.SKIP),
        ("", "6.1.0", Status.SKIP),
    ],
)
def test_favordynmods(mounts: str, release: str, status: Status) -> None:
    assert keeping.check_favordynmods(mounts, release).status is status


@pytest.mark.skipif(os.geteuid() != 0, reason="as a user machines have no uids of their own")
@pytest.mark.parametrize(
    ("passwd", "subuid", "word"),
    [
        ("root:x:0:0::/root:/bin/sh\nodd", "me:100000:65536\nodd", None),
        ("far:x:2000000007:1::/:/bin/sh", "", "user far"),
        ("", "me:1999990000:65536", "me's range"),
        ("", "me:2000004096:65536", "me's range"),
        ("", "me:2000004097:65536", None),
    ],
)
def test_uids_are_nobody_elses(settings: Settings, passwd: str, subuid: str, word: str | None) -> None:
    check = keeping.check_uid_range(settings, passwd, subuid)
    assert check.status is (Status.WARN if word else Status.PASS)
    assert word is None or word in check.found
