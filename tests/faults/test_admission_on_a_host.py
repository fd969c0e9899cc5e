"""Admission with real machines: nothing is spawned for who does not get in, and who waits gets in in turn."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from fault_world import Running, daemon_on, events, folders, until, vmms

from casemate.errors import CasemateError
from casemate.sdk import Client, Sandbox

pytestmark = [pytest.mark.vm, pytest.mark.slow]
ASKED, ROOM = 20, 5
# One of the default shape reserves 128 MiB and its measured 20 to 48: five fit with whichever, six with neither
BUDGET = {"CASEMATE_MEMORY_BUDGET_MIB": str(ROOM * (128 + 48))}


@contextmanager
def counted(home: Path) -> Iterator[set[int]]:
    """Every pid that was seen to be a machine of *home* until the block ended."""
    seen: set[int] = set()
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.01):
            seen.update(vmms(home))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


def create(url: str) -> Sandbox | CasemateError:
    with Client(url) as client:
        try:
            return Sandbox.create(client=client)
        except CasemateError as error:
            return error


def create_all(running: Running) -> tuple[list[Sandbox], list[CasemateError]]:
    with ThreadPoolExecutor(ASKED) as threads:
        found = list(threads.map(create, [str(running.client.target)] * ASKED))
    return [s for s in found if isinstance(s, Sandbox)], [e for e in found if isinstance(e, CasemateError)]


def test_with_room_for_five_five_of_twenty_run_and_nothing_is_made_for_the_others(home: Path, no_trace: None) -> None:
    with daemon_on(home, **BUDGET) as running:
        before = len(events(home, "sandbox.create"))
        with counted(home) as seen:
            made, refused = create_all(running)
        assert len(made) == ROOM
        assert len(refused) == ASKED - ROOM
        assert {error.code for error in refused} == {"host-full"}
        assert all(error.evidence["retry_after_s"] > 0 for error in refused)
        assert {error.retry.value for error in refused} == {"safe"}
        assert len(seen) == ROOM, "a machine was started for one that was refused"
        assert folders(home) == {sandbox.id for sandbox in made}
        assert len(events(home, "sandbox.create")) - before == ROOM
        Sandbox.connect(made[0].id, client=running.client).kill()
        with Sandbox.create(client=running.client):  # what is given back can be had at once
            pass


def test_who_may_wait_is_served_in_turn(home: Path, no_trace: None) -> None:
    with daemon_on(home, **BUDGET, CASEMATE_ADMISSION_WAIT_S="60") as running:
        url, served, most = str(running.client.target), [], 0

        def live_once(_: int) -> None:
            with Client(url) as client, Sandbox.create(client=client) as sandbox:
                served.append(sandbox.id)

        with counted(home) as seen, ThreadPoolExecutor(ASKED) as threads:
            lives = [threads.submit(live_once, n) for n in range(ASKED)]
            while not all(life.done() for life in lives):
                most = max(most, len(vmms(home)))
            for life in lives:
                life.result()
        assert len(set(served)) == ASKED
        assert len(seen) <= ASKED
        assert most <= ROOM
        health = running.client.health()["admission"]
        assert (health["memory_reserved_mib"], health["disk_reserved_mib"], health["waiting"]) == (0, 0, 0)


def test_what_can_never_fit_is_refused_at_once(home: Path, no_trace: None) -> None:
    with daemon_on(home, CASEMATE_DISK_BUDGET_MIB="100", CASEMATE_ADMISSION_WAIT_S="60") as running:
        with pytest.raises(CasemateError, match="this host gives") as raised:
            Sandbox.create(client=running.client)
        assert raised.value.code == "host-full"
        until(lambda: running.client.health()["sandboxes"] == 0, "nothing stays of it")


def test_who_has_nothing_to_do_makes_room_and_comes_back_when_called(home: Path, no_trace: None) -> None:
    with daemon_on(home, **BUDGET) as running:
        rests = {"on_idle": "suspend", "park_after_s": 0.3, "client": running.client}
        made = [Sandbox.create(**rests) for _ in range(ROOM)]
        until(lambda: all(sandbox.refresh().parked for sandbox in made), "all are parked")
        made.append(Sandbox.create(**rests))
        assert [sandbox.refresh().state for sandbox in made] == ["suspended"] + ["running"] * ROOM
        until(lambda: all(sandbox.refresh().parked for sandbox in made[1:]), "all others are parked")
        assert made[0].commands.run("echo back").stdout == "back\n"
        assert [sandbox.refresh().state for sandbox in made[:2]] == ["running", "suspended"]
        for sandbox in made:
            sandbox.kill()
