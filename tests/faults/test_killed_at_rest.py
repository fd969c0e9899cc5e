"""kill -9 of the daemon at every named step of a suspend and of a resume: as before, or as after, never torn.

The steps come from the plans. "On entering a step" is "after the one before it": nothing happens in between, so each
boundary is one point. ``make soak`` adds moments within them. Each daemon first checks what the one before it left.
"""

from __future__ import annotations

import gc
import random
import signal
from collections.abc import Callable, Mapping
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
from rest_world import RESUME, SUSPEND

from casemate.errors import CasemateError
from casemate.sdk import Sandbox

pytestmark = [
    pytest.mark.vm,
    pytest.mark.slow,
    # httpcore leaves the socket of a refused connection to the garbage collector
    pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"),
]
AFTER_THE_SEAL = ("suspend-seal:done", "close-link", "kill-machine", "kill-machine:done")
SLOW = {"suspend-memory": 60, "suspend-sync": 60, "suspend-seal": 20, "resume-machine": 80, "resume-run": 10}
LEAVE = "echo kept > plain; echo synced > synced; sync synced; nohup sh -c 'while :; do echo x >> count; sleep 0.1; done' >/dev/null 2>&1 &"  # noqa: E501


def within(names: list[str]) -> list[str]:
    drawn = random.Random(SEED)
    return [f"{name}:{drawn.randrange(1, SLOW.get(name, 5) + 1)}" for name in names for _ in range(3 if SOAK else 0)]


def test_the_plans_say_what_there_is_to_test() -> None:
    assert (SUSPEND[0], SUSPEND[-1]) == ("suspend-record", "suspend-seal")
    assert (RESUME[0], RESUME[-1]) == ("resume-reserve", "resume-run")


@pytest.mark.timeout(1800 if SOAK else 300)
def test_while_it_is_suspended(home: Path, no_trace: None) -> None:
    """Before the seal there is nothing but a running sandbox, which ends with its daemon; after it, all is kept."""
    kept: list[str] = []
    found: Mapping[str, bool] = {}
    drawn_before = [f"suspend-seal:{ms}" for ms in ((1, 3, 8, 15) if SOAK else (2,))]
    for point in (*SUSPEND, *within(SUSPEND[:-1]), *drawn_before, *AFTER_THE_SEAL):
        with daemon_on(home, CASEMATE_FAULT=f"kill:{point}") as running:
            kept += left_whole(running, found)
            sandbox = Sandbox.create(client=running.client, idle_timeout_s=None)
            sandbox.commands.run(LEAVE, check=True)
            with pytest.raises(CasemateError):
                asked_for(running, sandbox.suspend)
            assert running.wait_dead() == -signal.SIGKILL, point
        until(lambda: not vmms(home), f"{point}: its machine dies with it")
        sealed = (home / "sandboxes" / sandbox.id / "suspended").exists()
        assert sealed or point not in AFTER_THE_SEAL, point
        assert not sealed or point in AFTER_THE_SEAL or point.startswith("suspend-seal:"), point
        found = {sandbox.id: sealed}
    with daemon_on(home) as running:
        kept += left_whole(running, found)
        assert len(kept) >= len(AFTER_THE_SEAL)
        for sandbox_id in kept:
            with Sandbox.connect(sandbox_id, client=running.client) as sandbox:
                goes_on(sandbox)
        nothing_left(running, set(kept))
    assert chain_is_whole(home)
    gc.collect()  # httpcore's sockets, that an error's cycle still holds


def asked_for(running: Running, act: Callable[[], object]) -> None:
    act()
    running.wait_dead()  # it died after it had answered
    running.client.health()


def left_whole(running: Running, found: Mapping[str, bool]) -> list[str]:
    """The daemon tells what it found: suspended, or ended and nothing of it left."""
    home = running.home
    for sandbox_id, sealed in found.items():
        ((state, info),) = rows(home, f"SELECT state, info FROM sandboxes WHERE id = '{sandbox_id}'")
        assert not started_for({sandbox_id})
        assert not cgroups_named({sandbox_id})
        assert not mounts_below(home)
        if not sealed:
            assert (state, '"daemon-died"' in info) == ("terminated", True), info
            assert sandbox_id not in folders(home)
            assert running.recovered["folders"] == [sandbox_id]
            continue
        assert state == "suspended"
        inside = {p.name for p in (home / "sandboxes" / sandbox_id).iterdir()}
        assert inside == {"meta.json", "suspended"}
        shown = Sandbox.connect(sandbox_id, client=running.client).info
        assert (shown.state, shown.pid) == ("suspended", None)
        assert shown.suspended is not None
    assert running.client.health()["admission"]["memory_reserved_mib"] == 0
    return [sandbox_id for sandbox_id, sealed in found.items() if sealed]


def goes_on(sandbox: Sandbox) -> None:
    assert sandbox.resume().state == "running"
    before = sandbox.files.stat("count").size
    assert sandbox.commands.run("cat plain synced").stdout == "kept\nsynced\n"
    until(lambda: sandbox.files.stat("count").size > before, "what ran goes on")


def nothing_left(running: Running, sandboxes: set[str]) -> None:
    assert not vmms(running.home)
    assert not folders(running.home) & sandboxes
    assert not started_for(sandboxes)
    assert not cgroups_named(sandboxes)
    assert running.client.health()["admission"]["memory_reserved_mib"] == 0


def stored(home: Path, sandbox_id: str) -> dict[str, bytes]:
    """All that was stored of it, byte by byte; the disk by its manifest's word and its size."""
    folder = home / "sandboxes" / sandbox_id / "suspended"
    return {name: (folder / name).read_bytes() for name in ("state", "difference", "manifest.json")}


@pytest.mark.timeout(1800 if SOAK else 300)
def test_while_it_is_resumed(home: Path, no_trace: None) -> None:
    """Until it runs it is suspended, and not a byte of what is stored has changed."""
    with daemon_on(home) as running:
        sandbox = Sandbox.create(client=running.client, idle_timeout_s=None)
        sandbox.commands.run(LEAVE, check=True)
        sandbox.suspend()
    was = stored(home, sandbox.id)
    for point in (*RESUME, *within(RESUME[:-1])):
        with daemon_on(home, CASEMATE_FAULT=f"kill:{point}") as running:
            assert left_whole(running, {sandbox.id: True}) == [sandbox.id], point
            with pytest.raises(CasemateError):
                Sandbox.connect(sandbox.id, client=running.client).resume()
            assert running.wait_dead() == -signal.SIGKILL, point
        until(lambda: not vmms(home), f"{point}: its machine dies with it")
        assert stored(home, sandbox.id) == was, point
    with daemon_on(home, CASEMATE_FAULT="kill:resume-run:done") as running:
        left_whole(running, {sandbox.id: True})
        again = Sandbox.connect(sandbox.id, client=running.client)
        with pytest.raises(CasemateError):
            asked_for(running, again.resume)
        assert running.wait_dead() == -signal.SIGKILL
    with daemon_on(home) as running:
        left_whole(running, {sandbox.id: False})
        nothing_left(running, {sandbox.id})
    assert chain_is_whole(home)
    gc.collect()


@pytest.mark.timeout(120)
def test_after_all_of_it_what_was_in_it_goes_on(home: Path, no_trace: None) -> None:
    """The same sandbox, its daemon killed in a resume after another, and then resumed: nothing was lost in between."""
    with daemon_on(home) as running:
        sandbox = Sandbox.create(client=running.client, idle_timeout_s=None)
        sandbox.commands.run(LEAVE, check=True)
        sandbox.suspend()
    for point in ("resume-ping", "resume-run"):
        with daemon_on(home, CASEMATE_FAULT=f"kill:{point}") as running, pytest.raises(CasemateError):
            Sandbox.connect(sandbox.id, client=running.client).resume()
    with daemon_on(home) as running, Sandbox.connect(sandbox.id, client=running.client) as again:
        goes_on(again)
    gc.collect()
