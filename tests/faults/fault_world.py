"""Daemons that are killed, and what the kernel and the home say of them afterwards."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import pytest

from casemate import audit, storage
from casemate.sdk import Client

READY_S = 30
SOAK = bool(os.environ.get("CASEMATE_SOAK"))
SEED = int(os.environ["CASEMATE_SEED"])


def until(condition: Callable[[], object], what: str, within_s: float = 10) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {within_s:g} s: {what}"
        time.sleep(0.01)


@dataclass(frozen=True)
class Running:
    """A daemon that a test may kill. *client* speaks to it."""

    home: Path
    process: subprocess.Popen[bytes]
    client: Client
    listen: str | None = None

    @property
    def recovered(self) -> dict[str, Any]:
        found = self.client.health()["recovered"]
        assert isinstance(found, dict)
        return found

    def wait_dead(self, within_s: float = 20) -> int:
        return self.process.wait(within_s)


@contextmanager
def daemon_on(home: Path, *command: str, **env: str) -> Iterator[Running]:
    """One daemon on *home*; ended with SIGTERM unless it is dead by then. *command*: another way to run it."""
    read_end, write_end = os.pipe()
    argv = [sys.executable, *(command or ("-m", "casemate.daemon")), "--ready-fd", str(write_end)]
    with (home / "daemon.log").open("ab") as log:
        process = subprocess.Popen(
            argv,
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
        with Client(f"unix://{home}/run/daemon.sock") as client:
            yield Running(home, process, client, line.get("listen"))
    finally:
        process.terminate()
        try:
            process.wait(65)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            pytest.fail("the daemon did not end on SIGTERM")


def vmms(home: Path) -> dict[int, str]:
    """The VMMs that run *home*'s own copy of the binary, by the kernel's word: pid → guest id."""
    ours = {(s.st_dev, s.st_ino) for s in (p.stat() for p in home.glob("vmm/*/usr/bin/*"))}
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            exe, words = (entry / "exe").stat(), (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if (exe.st_dev, exe.st_ino) in ours:
            names = [word.removeprefix(b"guest=").decode() for word in words if word.startswith(b"guest=")]
            found[int(entry.name)] = names[0] if names else "?"
    return found


def started_for(sandboxes: set[str]) -> list[int]:
    """Every process that was started for one of these sandboxes: its machine, and the jail around that."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes().split(b"\0")
        except OSError:  # it has just ended
            continue
        if any(f"guest={sandbox}".encode() in words for sandbox in sandboxes):
            found.append(int(entry.parent.name))
    return found


def mounts_below(home: Path) -> list[str]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [place for place in (line.split()[4] for line in lines) if place.startswith(f"{home}/")]


def cgroups_named(names: set[str]) -> list[str]:
    """Control groups anywhere that carry one of these sandboxes' ids."""
    found = []
    for root, folders, _ in os.walk("/sys/fs/cgroup"):
        found += [f"{root}/{folder}" for folder in folders if any(name in folder for name in names)]
    return found


def folders(home: Path) -> set[str]:
    return {path.name for path in (home / "sandboxes").iterdir()}


def rows(home: Path, query: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(home / "casemate.db")) as database:
        return database.execute(query).fetchall()


def events(home: Path, kind: str) -> list[str]:
    """The subjects of all events of that kind, oldest first."""
    return [s for (e, s) in rows(home, "SELECT event, subject FROM audit_events ORDER BY id") if e == kind]


def chain_is_whole(home: Path) -> bool:
    """Call it with no daemon on the home."""

    async def verify() -> bool:
        database = storage.open(home / "casemate.db")
        try:
            return await audit.Trail(database, "test").verify() is None
        finally:
            database.close()

    return anyio.run(verify)
