"""Daemons and homes for tests with real machines."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from casemate.config import default_home

READY_S = 60
STOP_S = 30


@dataclass(frozen=True)
class Daemon:
    home: Path
    pid: int
    listen: str | None = None

    @property
    def url(self) -> str:
        return f"unix://{self.home}/run/daemon.sock"


@contextmanager
def run_daemon(home: Path, **env: str) -> Iterator[Daemon]:
    """A daemon of the test's own, ended by its pid with SIGTERM; a daemon that does not end fails the test."""
    read_end, write_end = os.pipe()
    with (home / "daemon.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "casemate.daemon", "--ready-fd", str(write_end)],
            env=os.environ | {"CASEMATE_HOME": str(home)} | env,
            pass_fds=(write_end,),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    os.close(write_end)
    try:
        with os.fdopen(read_end) as ready:
            line = json.loads(ready.readline() or '{"status": "died"}')
        assert line["status"] == "ready", (line, (home / "daemon.log").read_text()[-3000:])
        yield Daemon(home, process.pid, line.get("listen"))
    finally:
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            pytest.fail("the daemon did not end on SIGTERM")


def new_home(folder: Path) -> Path:
    """A home below *folder* that shares the artifacts of the default home."""
    source = Path(os.environ.get("CASEMATE_HOME") or default_home())
    if not (source / "artifacts" / ".index").is_dir():
        pytest.skip(f"no image has been built in {source}; run: casemate setup --yes")
    home = folder / "home"
    home.mkdir(mode=0o700)
    for name in ("artifacts", "cache"):
        shutil.copytree(source / name, home / name, copy_function=os.link, symlinks=True)
    return home


def build_image(daemon: Daemon) -> None:
    """Kernel, disks and the snapshot of the default shape; only the snapshot is made, the rest is at hand."""
    argv = [sys.executable, "-m", "casemate.cli", "image", "build", "python"]
    subprocess.run(argv, check=True, timeout=600, env=os.environ | {"CASEMATE_URL": daemon.url})
