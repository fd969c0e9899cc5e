"""Daemons and homes for tests with real machines."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from tests.databases import open_new

import casemate
from casemate.config import default_home
from casemate.sandbox import Snapshot, open_seal

READY_S = 60
STOP_S = 30
LINKED = ("artifacts", "cache")


@dataclass
class Daemon:
    """*process* is this test process' own child."""

    home: Path
    process: subprocess.Popen[bytes]
    listen: str | None = None

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def url(self) -> str:
        return f"unix://{self.home}/run/daemon.sock"

    def last_words(self) -> str:
        """On one line, as the summary of a run shows no more."""
        said = (self.home / "daemon.log").read_text(errors="replace").splitlines()
        return " / ".join(line.strip() for line in said[-12:])[-1500:]


@contextmanager
def run_daemon(home: Path, **env: str) -> Iterator[Daemon]:
    """A daemon of the test's own, ended by its pid with SIGTERM; a daemon that does not end fails the test."""
    daemon = start_daemon(home, **env)
    try:
        yield daemon
    finally:
        stop_daemon(daemon)


def start_daemon(home: Path, **env: str) -> Daemon:
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
    daemon = Daemon(home, process)
    try:
        with os.fdopen(read_end) as ready:
            line = json.loads(ready.readline() or '{"status": "died"}')
        assert line["status"] == "ready", (line, daemon.last_words())
        daemon.listen = line.get("listen")
    except BaseException:
        stop_daemon(daemon)
        raise
    return daemon


def stop_daemon(daemon: Daemon) -> None:
    process = daemon.process
    process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        pytest.fail("the daemon did not end on SIGTERM")


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home at rest whose daemon has the default snapshot, from setup or built: once for all workers of a run."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with (base / "built.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # who waits longer for the builder than a test may take fails by that
        built = base / "built"
        if not built.exists():
            making = tmp_path_factory.mktemp("building")
            home = new_home(making)
            seed(source_home(), home)
            with run_daemon(home) as daemon:
                build_image(daemon)
            making.rename(built)
    return built / "home"


def new_home(folder: Path) -> Path:
    """A home below *folder* that shares the artifacts of the default home, and has no snapshot yet."""
    source = source_home()
    if not (source / "artifacts" / ".index").is_dir():
        pytest.skip(f"no image has been built in {source}; run: casemate setup --yes")
    return _linked(source, folder)


def source_home() -> Path:
    """The home that ``casemate setup`` has set up."""
    return Path(os.environ.get("CASEMATE_HOME") or default_home())


def seed(source: Path, home: Path) -> None:
    """The built-in images of *source* with their snapshots, in a new *home*; a daemon of other code builds its own."""
    open_new(home / "casemate.db").close()
    with closing(sqlite3.connect(home / "casemate.db")) as database, database:
        database.execute("ATTACH ? AS source", (str(source / "casemate.db"),))
        if database.execute("SELECT * FROM source.alembic_version EXCEPT SELECT * FROM alembic_version").fetchall():
            return
        for table in ("images", "image_versions", "snapshots"):
            database.execute(f"INSERT INTO {table} SELECT * FROM source.{table} WHERE tenant = 'system'")
        ready = database.execute("SELECT id FROM snapshots WHERE state = 'ready'").fetchall()
    places = [source / "snapshots" / name for (name,) in ready]
    (home / "snapshots").mkdir()
    subprocess.run(["cp", "-a", source / "seal", source / "host-id", home], check=True)
    if places:
        subprocess.run(["cp", "-a", "--sparse=always", *places, home / "snapshots"], check=True, timeout=60)
    _seal_anew(home, source)


def home_like(built: Path, folder: Path) -> Path:
    """A home below *folder* with copies of all that *built* has made and known: a test may harm them."""
    home = _linked(built, folder)
    rest = [path for path in built.iterdir() if path.name not in (*LINKED, "run", "daemon.log")]
    subprocess.run(["cp", "-a", "--sparse=always", *rest, home], check=True, timeout=60)
    _seal_anew(home, built)
    return home


def _seal_anew(home: Path, origin: Path) -> None:
    """The manifests of the snapshots in *home* name the disks by their places, which were below *origin*."""
    seal = open_seal(home)
    for place in (home / "snapshots").iterdir():
        read = Snapshot.read(place, seal, tenant="system")
        root, agent = (home / "artifacts" / disk.name for disk in (read.root, read.agent))
        manifest = place / "manifest.json"
        manifest.unlink()
        manifest.write_text(json.dumps(replace(read, root=root, agent=agent).manifest(seal)))
        manifest.chmod(0o444)
        shutil.copystat(origin / "snapshots" / place.name, place)


def sources(folder: Path) -> Path:
    """A copy of the package below *folder*, to be changed, whose agent warms no libraries: two thirds of a build.

    *folder* is for PYTHONPATH. Its clones import numpy themselves.
    """
    package = folder / "casemate"
    shutil.copytree(Path(casemate.__file__).parent, package)
    module = package / "guest/zygote.py"
    text, times = re.subn(r"(?s)\nPRELOAD = \(.*?\n\)", '\nPRELOAD = ("asyncio", "rlcompleter")', module.read_text())
    assert times == 1
    module.write_text(text)
    return package


def _linked(source: Path, folder: Path) -> Path:
    home = folder / "home"
    home.mkdir(mode=0o700)
    for name in LINKED:
        shutil.copytree(source / name, home / name, copy_function=os.link, symlinks=True)
    if (verdict := source / "run/host.json").is_file():  # measuring KVM takes two seconds where it is slow
        (home / "run").mkdir(mode=0o700)
        shutil.copy2(verdict, home / "run")
    return home


def build_image(daemon: Daemon) -> None:
    """Kernel, disks and the snapshot of the default shape; only the snapshot is made, the rest is at hand."""
    argv = [sys.executable, "-m", "casemate.cli", "image", "build", "python"]
    subprocess.run(argv, check=True, timeout=600, env=os.environ | {"CASEMATE_URL": daemon.url})
