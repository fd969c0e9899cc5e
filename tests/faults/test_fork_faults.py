"""Harm at every named step of a fork and of a snapshot, and others' wishes in the midst of one.

All or nothing: copies or a version that are whole, or no trace of them. The parent runs on as before, unless its own
VMM or its daemon was killed. The daemon is killed, or stops itself so that harm is done at that very moment.
"""

from __future__ import annotations

import gc
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from itertools import count
from pathlib import Path

import pytest
from fault_world import (
    SEED,
    SOAK,
    Running,
    cgroups_named,
    chain_is_whole,
    daemon_on,
    folders,
    mounts_below,
    rows,
    started_for,
    until,
    vmms,
)
from rest_world import Follower, Stepper
from test_harm_at_rest import full_disk_daemon, kill_vmm, refusal, unfill
from test_killed_at_rest import asked_for

from casemate.errors import CasemateError
from casemate.sdk import Client, Sandbox

pytestmark = [
    pytest.mark.vm,
    pytest.mark.slow,
    # httpcore leaves the socket of a refused connection to the garbage collector
    pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"),
]
TAKE = ["copy", "sync", "quiesce", "hush", "pause", "drain", "state", "memory", "disk"]
TAKE = [f"take-{part}" for part in TAKE]
AFTERWARDS = ["take-unpause", "take-thaw", "take-thaw:30", "take-thaw:200", "thaw", "thaw:done"]
BUSY = ["sh", "-c", "while :; do :; done"]
SMALL_MIB = 2500
PIECE_BYTES = 4 << 20
SAMPLE = 5  # points of a sweep, in a run without SOAK


def some_of(points: Sequence[str]) -> list[tuple[int, str]]:
    """With their places, in order."""
    numbered = list(enumerate(points))
    return numbered if SOAK else sorted(random.Random(SEED).sample(numbered, SAMPLE))


@contextmanager
def quiet(home: Path, **env: str) -> Iterator[Running]:
    """A daemon; at its end nothing of what it made is left."""
    stored = snapshots(home)
    with daemon_on(home, **env) as running:
        yield running
        nothing_left(running, stored)


def snapshots(home: Path) -> set[str]:
    return {path.name for path in (home / "snapshots").iterdir()}


def nothing_left(running: Running, stored: set[str], *mounted: Path) -> None:
    home = running.home
    until(lambda: not vmms(home), "its machines end")
    until(lambda: not folders(home), "its folders go")
    until(lambda: snapshots(home) == stored, f"what was saved goes: {snapshots(home) - stored}")
    until(lambda: reserved(running) == (0, 0), f"what was reserved is given back: {reserved(running)}")
    assert mounts_below(home) == [str(place) for place in mounted]


def reserved(running: Running) -> tuple[int, int]:
    admission = running.client.health()["admission"]
    return admission["memory_reserved_mib"], admission["disk_reserved_mib"]


def created(running: Running) -> Sandbox:
    return Sandbox.create(client=running.client, idle_timeout_s=None, park_after_s=None)


def fork(sandbox: Sandbox) -> list[Sandbox]:
    return sandbox.fork(2)


def fork_and_kill(sandbox: Sandbox) -> None:
    for copy in fork(sandbox):
        copy.kill()


def keep(sandbox: Sandbox) -> list[Sandbox]:
    """As an image, which goes again when it was kept."""
    sandbox.snapshot("kept")
    sandbox._client.snapshots.remove("kept")
    return []


@pytest.mark.timeout(1800 if SOAK else 300)
def test_the_daemon_is_killed(home: Path, no_trace: None) -> None:
    """Everything that runs ends with it; the next one finds nothing of what was not whole."""
    stored = snapshots(home)
    made: set[str] = set()
    for n, point in some_of((*TAKE, *AFTERWARDS)):
        acts: list[Callable[[Sandbox], object]] = [fork, keep] if SOAK else [fork if n % 2 else keep]
        for act in acts if point in TAKE else [fork]:  # what is kept may be whole by then
            with daemon_on(home, CASEMATE_FAULT=f"kill:{point}") as running:
                found_nothing(running, made, stored)
                sandbox = created(running)
                made.add(sandbox.id)
                with pytest.raises(CasemateError):
                    asked_for(running, partial(act, sandbox))
                assert running.wait_dead() == -signal.SIGKILL, point
                made |= folders(home)
            until(lambda: not vmms(home), f"{point}: its machines die with it")
    with daemon_on(home) as running:
        found_nothing(running, made, stored)
    assert chain_is_whole(home)
    gc.collect()  # httpcore's sockets, that an error's cycle still holds


def found_nothing(running: Running, made: set[str], stored: set[str]) -> None:
    home = running.home
    assert not started_for(made)
    assert not cgroups_named(made)
    assert not folders(home)
    assert snapshots(home) == stored
    assert reserved(running) == (0, 0)
    assert not rows(home, "SELECT id FROM sandboxes WHERE state <> 'terminated'")
    assert not rows(home, "SELECT id FROM image_versions WHERE kind = 'session' AND (active OR state <> 'failed')")


@pytest.mark.timeout(300)
def test_the_parents_vmm_is_killed(home: Path, no_trace: None) -> None:
    """It ends as any whose VMM dies, and there is nothing of what was being made of it."""
    with quiet(home, CASEMATE_FAULT="stop:take-*") as running:
        stepper = Stepper(running.process.pid)
        for n, step in some_of(TAKE):
            act = fork if n % 2 else keep
            parent = created(running)
            stepper.arm(n, lambda parent=parent: kill_vmm(home, parent.id))
            with pytest.raises(CasemateError):
                act(parent)
            until(lambda parent=parent: parent.refresh().state == "terminated", f"{step}: its end")
            reason = parent.refresh().state_reason
            assert reason is not None
            assert reason.code in ("vmm-died", "guest-silent"), (step, reason)
            until(lambda: not vmms(home), f"{step}: no copy is left")
            assert stepper.stops > n, step


@pytest.mark.timeout(300)
def test_the_disk_runs_full(home: Path, no_trace: None) -> None:
    with small_disk(home / "snapshots") as disk, full_disk_daemon(home, "stop:take-*") as (running, stepper):
        stored = snapshots(home)
        parent = created(running)
        follower = Follower(str(running.client.target), parent.id)
        refused = 0
        for n, step in enumerate(TAKE):
            stepper.arm(n, lambda: fill(disk))
            code = refusal(partial(fork_and_kill if n % 2 else keep, parent))
            assert code in (None, "host-full"), step
            refused += code is not None
            unfill(disk)
            stepper.arm(-1, lambda: None)
            assert snapshots(home) == stored, step
            assert parent.refresh().state == "running", step
            follower.goes_on()
            assert parent.commands.run("echo here").stdout == "here\n", step
        assert refused >= 5
        for copy in parent.fork(2):
            assert copy.commands.run("echo here").stdout == "here\n"
            copy.kill()
        follower.goes_on()
        parent.kill()
        follower.wait_end()
        nothing_left(running, stored, disk)


def fill(folder: Path) -> None:
    """To the last block, which a tmpfs does not tell exactly. Quickly: the daemon stands still meanwhile."""
    with (folder / "filler").open("wb", buffering=0) as file, suppress(OSError):
        for at in count(0, PIECE_BYTES):
            os.posix_fallocate(file.fileno(), at, PIECE_BYTES)


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """*folder* on a disk of its own that is soon full, with what is in it."""
    aside = folder.with_name("snapshots-aside")
    folder.rename(aside)
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SMALL_MIB}m", "tmpfs", folder], check=True)
    try:
        subprocess.run(["cp", "-a", "--sparse=always", f"{aside}/.", folder], check=True)
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)
        folder.rmdir()
        aside.rename(folder)


@pytest.fixture(scope="module")
def running(home: Path) -> Iterator[Running]:
    with quiet(home) as running:
        yield running


@pytest.fixture
def parent(running: Running) -> Iterator[Sandbox]:
    with created(running) as parent:
        parent.run_code("kept = 'in memory'")
        yield parent


def test_suspended_in_mid_fork(running: Running, parent: Sandbox) -> None:
    """One after the other, whichever comes first."""
    for pause_s in (0.02, 0.1, 0.3):
        copies = meanwhile(parent, 3, pause_s, lambda one: one.suspend())
        assert parent.refresh().state in ("running", "suspended")
        for copy in copies or []:
            assert copy.run_code("kept").text == "'in memory'"
            copy.kill()
        assert copies is not None
        assert parent.run_code("kept").text == "'in memory'"


def test_killed_in_mid_fork(running: Running) -> None:
    """All copies, which need it no more, or none."""
    for pause_s in (0.02, 0.1, 0.3, 0.6):
        parent = created(running)
        copies = meanwhile(parent, 3, pause_s, lambda one: one.kill())
        assert parent.refresh().state == "terminated"
        for copy in copies or []:
            assert copy.commands.run("echo here").stdout == "here\n"
            copy.kill()
        until(lambda: not vmms(running.home), "nothing of it runs")


def test_forked_while_it_is_being_suspended(running: Running, parent: Sandbox) -> None:
    for pause_s in (0.0, 0.05, 0.2):
        suspending = threading.Thread(target=on_another_client, args=(parent, lambda one: one.suspend()))
        suspending.start()
        time.sleep(pause_s)
        copies = parent.fork(2)
        suspending.join(60)
        for copy in copies:
            assert copy.run_code("kept").text == "'in memory'"
            copy.kill()
        assert parent.run_code("kept").text == "'in memory'"


def test_forked_and_kept_by_several_at_once(running: Running, parent: Sandbox) -> None:
    def ask(n: int) -> list[str]:
        found: list[str] = []

        def act(one: Sandbox) -> None:
            if n % 2:
                one.snapshot(f"kept-{n}")
                one._client.snapshots.remove(f"kept-{n}")
            else:
                found.extend(copy.id for copy in one.fork(2))

        on_another_client(parent, act)
        return found

    with ThreadPoolExecutor(4) as threads:
        copies = [copy for some in threads.map(ask, range(4)) for copy in some]
    assert len(set(copies)) == 4
    for copy in copies:
        with Sandbox.connect(copy, client=running.client) as sandbox:
            assert sandbox.run_code("kept").text == "'in memory'"


@pytest.mark.timeout(240)
def test_six_of_one_that_has_no_time(running: Running, parent: Sandbox) -> None:
    """Its processors are all taken, and so are theirs as soon as they run."""
    with ExitStack() as held:
        for _ in range(2):
            held.enter_context(parent.commands.start(BUSY))
        copies = parent.fork(6)
        with ThreadPoolExecutor(4) as threads:
            said = list(threads.map(lambda copy: copy.commands.run("echo here").stdout, copies))
        assert said == ["here\n"] * 6
        for copy in copies:
            copy.kill()
        assert parent.run_code("kept").text == "'in memory'"


def on_another_client(sandbox: Sandbox, act: Callable[[Sandbox], object]) -> None:
    with Client(str(sandbox._client.target)) as client:
        act(Sandbox.connect(sandbox.id, client=client))


def meanwhile(parent: Sandbox, count: int, pause_s: float, act: Callable[[Sandbox], object]) -> list[Sandbox] | None:
    """*count* copies of it, while *act* befalls it *pause_s* after that was asked for; None: it was refused."""

    def forked() -> list[Sandbox] | None:
        try:
            return parent.fork(count)
        except CasemateError:
            return None

    with ThreadPoolExecutor(1) as threads:
        asked = threads.submit(forked)
        time.sleep(pause_s)
        on_another_client(parent, act)
        return asked.result(60)
