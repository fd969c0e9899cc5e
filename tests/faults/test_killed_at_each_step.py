"""kill -9 of the daemon at, in and between every named step of boot and teardown: the next start sweeps it all.

The steps come from the plan itself. Each daemon of the sweep first finds what the one before it left, then dies at
its own point. ``make test`` takes three points per step, drawn by a seed that is printed; ``make soak`` takes all.
"""

from __future__ import annotations

import gc
import os
import random
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from fault_world import (
    SEED,
    SOAK,
    Running,
    cgroups_named,
    chain_is_whole,
    daemon_on,
    events,
    folders,
    mounts_below,
    rows,
    started_for,
    until,
    vmms,
)

from casemate.errors import CasemateError
from casemate.sandbox import Starter
from casemate.sandbox.plan import undone
from casemate.sdk import Sandbox

pytestmark = [
    pytest.mark.vm,
    pytest.mark.slow,
    # httpcore leaves the socket of a refused connection to the garbage collector
    pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"),
]
NAME = "victim"
SLOW = {"machine": 60, "handshake": 80, "disk": 10}  # how many ms a step may take; the others are over in 5


def steps() -> tuple[list[str], list[str]]:
    """The names of the boot and of the teardown, in order."""
    nothing = object()
    starter = Starter(nothing, nothing, nothing, 1.0)  # type: ignore[arg-type]
    plan = [*starter.life_plan(), *starter.start_plan()]
    return [step.name for step in plan], list(undone(plan))


@dataclass(frozen=True)
class Point:
    fault: str
    in_boot: bool


def points() -> list[Point]:
    """Three per step: on entering it, somewhere in it, after it. All of them three times over in a soak."""
    drawn, found = random.Random(SEED), []
    for names, in_boot in zip(steps(), (True, False), strict=True):
        for name in names:
            for _ in range(3 if SOAK else 1):
                within_ms = drawn.randrange(1, SLOW.get(name, 5) + 1)
                found += [Point(f"kill:{name}{moment}", in_boot) for moment in ("", ":done", f":{within_ms}")]
    drawn.shuffle(found)
    return found


def test_the_plan_says_what_there_is_to_test() -> None:
    boot, teardown = steps()
    assert boot[0] == "reserve"
    assert "machine" in boot
    assert teardown[0] == "terminate"
    assert teardown[-1] == "release-reservation"
    assert len({*boot, *teardown}) == len(boot) + len(teardown)


@pytest.mark.timeout(1800 if SOAK else 400)
def test_whatever_is_left_is_swept_and_told(home: Path, no_trace: None) -> None:
    left, last = Left.none(), "nothing"
    for point in points():
        with daemon_on(home, CASEMATE_FAULT=point.fault) as running:
            swept(running, left, f"after {last}")
            with pytest.raises(CasemateError) as raised:
                live(running, point)
            assert raised.value.code in ("daemon-unavailable", "not-found"), (point, raised.value)
            del raised  # httpcore's socket of a refused connection is closed when its error is forgotten
            assert running.wait_dead() == -signal.SIGKILL, point
            until(lambda: not vmms(home), f"{point}: its machines die with it")
        left, last = Left.by_now(home), point.fault
    with daemon_on(home) as running:
        swept(running, left, f"after {last}")
        with Sandbox.create(name=NAME, client=running.client) as again:
            assert again.commands.run("echo again").stdout == "again\n"
    assert not vmms(home)
    assert chain_is_whole(home)
    gc.collect()  # such sockets that an error's cycle still holds


@dataclass(frozen=True)
class Left:
    """What a killed daemon has left in its home: folders, and sandboxes without an end."""

    folders: frozenset[str]
    unfinished: frozenset[str]

    @classmethod
    def none(cls) -> Left:
        return cls(frozenset(), frozenset())

    @classmethod
    def by_now(cls, home: Path) -> Left:
        found = rows(home, "SELECT id FROM sandboxes WHERE state != 'terminated'")
        return cls(frozenset(folders(home)), frozenset(i for (i,) in found))


def live(running: Running, point: Point) -> None:
    """Go through a sandbox's life, whose daemon dies in it."""
    sandbox = Sandbox.create(name=NAME, client=running.client)
    assert not point.in_boot or point.fault.rpartition(":")[2].isdecimal(), f"{point} was passed by"
    sandbox.kill()
    running.wait_dead()  # it died after it had answered
    running.client.health()


def swept(running: Running, left: Left, when: str) -> None:
    home, told = running.home, running.recovered
    assert set(told.get("folders", ())) == left.folders, when
    assert set(told.get("sandboxes", ())) >= left.unfinished, when
    assert "failed" not in told, (when, told)
    assert folders(home) == set(), when
    assert not vmms(home), when
    assert not started_for(set(left.folders | left.unfinished)), when
    assert not mounts_below(home), when
    assert not cgroups_named(set(left.folders | left.unfinished)), when
    assert {p.name for p in (home / "run").glob("*.sock")} == {"daemon.sock"}, when
    if (home / "jail").is_dir():
        assert not list((home / "jail").iterdir()), when
    for sandbox in left.folders | left.unfinished:
        ((state, info),) = rows(home, f"SELECT state, info FROM sandboxes WHERE id = '{sandbox}'")
        assert state == "terminated", (when, sandbox)
        assert '"daemon-died"' in info or '"killed"' in info, (when, info)
        assert sandbox in events(home, "sandbox.create"), f"{when}: {sandbox} had no intent on record"
        assert sandbox in events(home, "sandbox.terminated"), when
    health = running.client.health()
    assert health["admission"]["memory_reserved_mib"] == 0, when


@pytest.fixture
def stopped_launcher(home: Path) -> Iterator[tuple[int, str]]:
    """A machine that outlived its daemon, because the launcher it hangs on has been stopped: (pid, sandbox)."""
    with daemon_on(home) as running:
        sandbox = Sandbox.create(client=running.client)
        pid = sandbox.info.pid
        assert pid
        launcher = int(Path(f"/proc/{running.process.pid}/task/{running.process.pid}/children").read_text().split()[0])
        os.kill(launcher, signal.SIGSTOP)
        running.process.kill()
        running.wait_dead()
        sandbox.close()
    assert vmms(home) == {pid: sandbox.id}
    yield pid, sandbox.id
    for left in (pid, launcher):
        try:
            os.kill(left, signal.SIGKILL)
        except ProcessLookupError:
            continue


def test_a_machine_that_lives_on_is_found_and_killed(home: Path, stopped_launcher: tuple[int, str]) -> None:
    pid, sandbox = stopped_launcher
    with daemon_on(home) as running:
        told = running.recovered
        assert f"{sandbox} (pid {pid})" in told["processes"]
        assert any(name.startswith("launcher") for name in told["processes"])
        assert told["folders"] == [sandbox]
        assert not vmms(home)
        with Sandbox.create(client=running.client) as again:
            assert again.commands.run("echo again").stdout == "again\n"
