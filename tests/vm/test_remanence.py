"""What one sandbox wrote to memory, disk and environment is found with its tenant only, and nowhere once that is gone.

Looked for in the memory of every VMM of the home, in each file below it (the disks, the image snapshots, the database,
the logs), in deleted files that are still open, and in the host's swap.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from tests.faults.fault_world import vmms
from tests.remanence import Canary, Found, search
from vm_world import Daemon

from casemate.sdk import Client, Sandbox

pytestmark = [pytest.mark.vm, pytest.mark.slow]
COPIES = 16_384  # 1 MiB of it: some survive whatever is written over parts of it
READ_BYTES = 10 << 20  # at least, of each machine
REMEMBER = "secret = ('{}' + '{}').encode() * {}"


@pytest.fixture(scope="module")
def pool(daemon: Daemon) -> Iterator[Client]:
    """One member that is always ready; a client beside it."""
    with Client(daemon.url) as client:
        client.pools.set("python", min_ready=1)
        ready(client)
        yield client
        client.pools.remove("python")
        until(lambda: not vmms(daemon.home), "the member ends")


def until(condition: Callable[[], object], what: str, within_s: float = 60) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {within_s:g} s: {what}"
        time.sleep(0.05)


def ready(client: Client) -> None:
    until(lambda: client.pools.get("python")["ready"] == 1, "a member is ready")


def found(daemon: Daemon, canary: Canary, machines: int) -> set[str]:
    """The places that have it. *machines*: how many there are to be looked through."""
    looked: Found = search(canary, daemon.home, daemon.pid)
    print(looked)
    assert looked.processes == machines
    assert looked.memory_bytes > machines * READ_BYTES
    assert looked.file_bytes > 300 << 20
    return looked.places


def holding(client: Client, canary: Canary) -> Sandbox:
    sandbox = Sandbox.create(client=client, env={"SECRET": canary.text}, idle_timeout_s=None, park_after_s=None)
    remember(sandbox, canary)
    return sandbox


def remember(sandbox: Sandbox, canary: Canary) -> None:
    done = sandbox.run_code(REMEMBER.format(*canary.shares, COPIES))
    assert done.error is None, done.error
    sandbox.files.write("secret", canary.text * COPIES)
    sandbox.commands.run("sync", check=True)


def still_knows(sandbox: Sandbox, canary: Canary) -> None:
    assert sandbox.run_code("secret[:64].decode()").text == repr(canary.text)
    assert sandbox.commands.run("head -c 64 secret; printf $SECRET").stdout == canary.text * 2


def below(sandbox: Sandbox, *names: str) -> set[str]:
    return {f"sandboxes/{sandbox.id}/{name}" for name in names}


def test_while_it_lives_it_alone_has_it(daemon: Daemon, pool: Client) -> None:
    """The search sees what is there, in memory and on the disk; the others, made before and after, have none of it."""
    canary = Canary.draw()
    with Sandbox.create(client=pool), holding(pool, canary) as sandbox, Sandbox.create(client=pool):
        ready(pool)
        assert found(daemon, canary, machines=4) == {f"memory of {sandbox.id}"} | below(sandbox, "disk")
        still_knows(sandbox, canary)
    ready(pool)
    assert found(daemon, canary, machines=1) == set()


def test_suspended_it_is_in_its_own_state(daemon: Daemon, pool: Client) -> None:
    canary = Canary.draw()
    for kill_at_rest in (False, True):
        with holding(pool, canary) as sandbox, Sandbox.create(client=pool):
            sandbox.suspend()
            ready(pool)
            parts = ("suspended/difference", "suspended/disk", "suspended/manifest.json")  # its env is in the last
            assert found(daemon, canary, machines=2) == below(sandbox, *parts)
            if not kill_at_rest:
                sandbox.resume()
                still_knows(sandbox, canary)
                places = found(daemon, canary, machines=3)
                assert places == {f"memory of {sandbox.id}"} | below(sandbox, "disk")
        ready(pool)
        assert found(daemon, canary, machines=1) == set()


def test_a_pool_member_takes_it_with_it(daemon: Daemon, pool: Client) -> None:
    """What was claimed and used is never ready again; what takes its place is as new."""
    canary = Canary.draw()
    ready(pool)
    hits = pool.pools.get("python")["hits"]
    with Sandbox.create(client=pool) as claimed:
        assert pool.pools.get("python")["hits"] == hits + 1
        remember(claimed, canary)
        ready(pool)
        assert found(daemon, canary, machines=2) == {f"memory of {claimed.id}"} | below(claimed, "disk")
    until(lambda: len(vmms(daemon.home)) == 1, "it has ended")
    ready(pool)
    assert found(daemon, canary, machines=1) == set()
    with Sandbox.create(client=pool):
        ready(pool)
        assert found(daemon, canary, machines=2) == set()


def test_forked_it_is_in_the_copies_and_gone_with_the_last(daemon: Daemon, pool: Client) -> None:
    canary = Canary.draw()
    with ExitStack() as held:
        parent = held.enter_context(holding(pool, canary))
        copies = [held.enter_context(copy) for copy in parent.fork(2)]
        other = held.enter_context(Sandbox.create(client=pool))
        for copy in copies:
            still_knows(copy, canary)
        ready(pool)
        family = {parent.id, *(copy.id for copy in copies)}
        places = found(daemon, canary, machines=5)
        templates = {place for place in places if place.startswith("snapshots/")}
        assert {place.rpartition("/")[2] for place in templates} == {"memory", "disk"}
        own = {f"memory of {one}" for one in family} | {f"sandboxes/{one}/disk" for one in family}
        assert places - templates == own
        parent.kill()
        copies[0].suspend()
        copies[1].kill()
        places = found(daemon, canary, machines=2)
        assert not any(other.id in place for place in places)
        resting = below(copies[0], "suspended/difference", "suspended/disk", "suspended/manifest.json")
        assert places - resting == templates
        copies[0].resume()
        still_knows(copies[0], canary)
    ready(pool)
    assert found(daemon, canary, machines=1) == set()


def test_kept_it_is_in_the_snapshot_until_that_is_deleted(daemon: Daemon, pool: Client) -> None:
    canary = Canary.draw()
    with holding(pool, canary) as sandbox:
        sandbox.snapshot("kept-secret")
    with Sandbox.create(client=pool):
        ready(pool)
        kept = found(daemon, canary, machines=2)
    assert {place.partition("/")[0] for place in kept} == {"snapshots"}
    assert {place.rpartition("/")[2] for place in kept} == {"memory", "disk", "manifest.json"}  # its env is in the last
    with Sandbox.create("kept-secret", client=pool) as again:
        still_knows(again, canary)
    pool.snapshots.remove("kept-secret@1")
    ready(pool)
    assert found(daemon, canary, machines=1) == set()
