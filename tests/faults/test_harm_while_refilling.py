"""The VMM is killed, or the disk runs full, at the named steps of a pool's refill: the pool heals, nothing is left.

``make test`` takes some of the steps, drawn by a seed that is printed; ``make soak`` takes all.
"""

from __future__ import annotations

import os
import random
import signal
from contextlib import suppress
from pathlib import Path

import pytest
from fault_world import SEED, SOAK, Running, folders, until, vmms
from rest_world import Act, Stepper
from tests.faults.test_harm_at_rest import fill, full_disk_daemon, small_disk, unfill
from tests.faults.test_killed_while_refilling import steps

from casemate.sdk import Sandbox

pytestmark = [pytest.mark.vm, pytest.mark.slow]
REFILL = [name for name in steps() if name.startswith("pool-")]
SAMPLE = 2
HEALED_S = 90.0  # after a failure the next try waits


def drawn(names: list[str]) -> list[str]:
    return names if SOAK else random.Random(SEED).sample(names, SAMPLE)


def kill_all(home: Path) -> None:
    for pid in vmms(home):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def heals(running: Running, step: str) -> None:
    """Whoever asks meanwhile is served, in the ordinary way where the one that is ready turns out dead."""
    client = running.client
    for _ in range(2):
        until(lambda: client.pools.get("python")["ready"] == 1, f"{step}: it is filled", HEALED_S)
        with Sandbox.create(client=client) as claimed:
            assert claimed.commands.run("echo alive").stdout == "alive\n", step
    assert client.pools.get("python")["hits"] >= 1, step
    client.pools.remove("python")


def filled_or_failed(running: Running) -> bool:
    pool = running.client.pools.get("python")
    return pool["ready"] == 1 or pool["failure"] is not None


def nothing_is_left(running: Running, home: Path, step: str) -> None:
    until(lambda: not vmms(home) and not folders(home) - {"filler"}, f"{step}: nothing is left", 30)
    until(lambda: running.client.health()["admission"]["memory_reserved_mib"] == 0, f"{step}: nor set aside", 10)


@pytest.mark.timeout(900 if SOAK else 300)
def test_the_vmm_is_killed_in_a_refill(home: Path, no_trace: None) -> None:
    with full_disk_daemon(home, "stop:pool-*") as (running, stepper):
        for step in drawn(REFILL[REFILL.index("pool-machine") + 1 :]):
            harmed = at(stepper, step, lambda: kill_all(home))
            running.client.pools.set("python", min_ready=1)
            until(lambda harmed=harmed: harmed, f"{step} is reached", 30)
            heals(running, step)
            nothing_is_left(running, home, step)


@pytest.mark.timeout(900 if SOAK else 300)
def test_the_disk_runs_full_in_a_refill(home: Path, no_trace: None) -> None:
    with small_disk(home / "sandboxes") as disk, full_disk_daemon(home, "stop:pool-*") as (running, stepper):
        for step in drawn(REFILL):
            harmed = at(stepper, step, lambda: fill(disk))
            running.client.pools.set("python", min_ready=1)
            until(lambda harmed=harmed: harmed, f"{step} is reached", 30)
            until(lambda: filled_or_failed(running), f"{step}: it is filled, or says why not", 60)
            unfill(disk)
            heals(running, step)
            nothing_is_left(running, home, step)


def at(stepper: Stepper, step: str, harm: Act) -> list[str]:
    """What is done at the next *step*, once; the list has it when it was."""
    done: list[str] = []

    def once() -> None:
        harm()
        done.append(step)

    stepper.arm(REFILL.index(step), once)
    return done
