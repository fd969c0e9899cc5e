"""kill -9 of the daemon at the named steps of a pool's refill and of a claim: the next start sweeps it all.

The steps come from the member's plan itself. ``make test`` takes some of them, drawn by a seed that is printed;
``make soak`` takes all, each at its beginning, within it and at its end.
"""

from __future__ import annotations

import gc
import random
import signal
import sqlite3
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, cast

import pytest
from fault_world import SEED, SOAK, Running, chain_is_whole, daemon_on, until, vmms
from tests.faults.test_killed_at_each_step import Left, swept

from casemate.errors import CasemateError, DaemonUnavailable
from casemate.sandbox.pool_member import MemberSupervisor
from casemate.sandbox.records import Records
from casemate.sandbox.starting import Starter
from casemate.sandbox.supervisor import Supervisor
from casemate.sdk import Sandbox

pytestmark = [
    pytest.mark.vm,
    pytest.mark.slow,
    # httpcore leaves the socket of a refused connection to the garbage collector
    pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"),
]
SAMPLE = 5
SLOW = {"pool-machine": 60, "pool-handshake": 80, "pool-warm": 500, "claim-handshake": 10}
READY = 2


def steps() -> list[str]:
    """All that happens from the wish for a member until it runs as somebody's."""
    nothing = cast(Any, None)
    starter = Starter(nothing, Records(nothing, nothing, Path()), nothing, 1.0)
    members = MemberSupervisor(Supervisor(starter, nothing, nothing))
    return [step.name for step in (*members.life_plan(), *members.start_plan(nothing)) if step.name != "run"]


def points() -> list[str]:
    drawn, found = random.Random(SEED), list[str]()
    for name in steps():
        within_ms = drawn.randrange(1, SLOW.get(name, 5) + 1)
        # it is in its longest step, the wait, until somebody comes: that is no fault of a step's
        moments = ("", ":done") if name == "pool-wait" else ("", ":done", f":{within_ms}")
        found += [f"kill:{name}{moment}" for moment in (moments if SOAK else [drawn.choice(moments)])]
    drawn.shuffle(found)
    return found if SOAK else found[:SAMPLE]


def test_the_plan_says_what_there_is_to_test() -> None:
    assert steps()[0] == "pool-reserve"
    assert {"pool-machine", "pool-warm", "pool-park", "pool-wait", "claim-intend", "claim-wake"} <= set(steps())
    assert len(set(steps())) == len(steps())


@pytest.mark.timeout(1800 if SOAK else 300)
def test_whatever_a_refill_or_a_claim_has_left_is_swept_and_told(home: Path, no_trace: None) -> None:
    for fault in points():
        with daemon_on(home, CASEMATE_FAULT=fault) as running:
            with pytest.raises(CasemateError):
                refill_and_claim(running)
            assert running.wait_dead() == -signal.SIGKILL, fault
            until(lambda: not vmms(home), f"{fault}: its machines die with it")
        left = Left.by_now(home)
        without_pools(home)
        with daemon_on(home) as running:
            swept(running, left, f"after {fault}")
    with daemon_on(home) as running:
        running.client.pools.set("python", min_ready=1)
        until(lambda: running.client.pools.get("python")["ready"] == 1, "a pool is filled again", 30)
        with Sandbox.create(client=running.client) as again:
            assert again.commands.run("echo again").stdout == "again\n"
        running.client.pools.remove("python")
    assert not vmms(home)
    assert chain_is_whole(home)
    gc.collect()  # such sockets that an error's cycle still holds


def refill_and_claim(running: Running) -> None:
    """Until the daemon dies of it."""
    client = running.client
    client.pools.set("python", min_ready=READY)
    with suppress(DaemonUnavailable):
        until(lambda: client.pools.get("python")["ready"] == READY, "it is filled, or dead", 30)
    Sandbox.create(client=client)
    running.wait_dead()  # it died after it had answered
    client.health()


def without_pools(home: Path) -> None:
    """The next daemon makes nothing that would be taken for what this one left."""
    with closing(sqlite3.connect(home / "casemate.db")) as database, database:
        database.execute("DELETE FROM pools")
