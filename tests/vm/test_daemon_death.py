"""A daemon that is killed takes its machines with it, and the next one clears up."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from vm_world import home_like, run_daemon

from casemate.sdk import Sandbox

pytestmark = pytest.mark.vm


def wait_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + 10
    while alive := [pid for pid in pids if Path(f"/proc/{pid}").exists()]:
        assert time.monotonic() < deadline, alive
        time.sleep(0.02)


def test_killed_it_leaves_no_machine_and_the_next_one_sweeps(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_trace: None
) -> None:
    home = home_like(built, tmp_path)
    with run_daemon(home) as first:
        monkeypatch.setenv("CASEMATE_URL", first.url)
        left = Sandbox.create()
        pid = left.info.pid
        assert pid
        left.close()
        os.kill(first.pid, signal.SIGKILL)
        wait_gone([pid])
        assert [folder.name for folder in (home / "sandboxes").iterdir()] == [left.id]
    with run_daemon(home) as second:
        monkeypatch.setenv("CASEMATE_URL", second.url)
        assert list((home / "sandboxes").iterdir()) == []
        ended = {info.id: info for info in Sandbox.list(all=True)}[left.id]
        assert ended.state == "terminated"
        assert ended.state_reason is not None
        assert ended.state_reason.code == "daemon-died"
        with Sandbox.create() as again:
            assert again.commands.run("echo again").stdout == "again\n"
