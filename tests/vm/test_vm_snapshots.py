"""Moments that are kept: used again tomorrow, of one another to any depth, and no larger for that."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from forking import LIGHT, at_once, ran, shared, until
from vm_world import Daemon, home_like, run_daemon

from casemate.errors import NotFound, StateConflict
from casemate.sdk import Client, Sandbox

pytestmark = [pytest.mark.vm, pytest.mark.slow]
DEPTH, KEPT_DEPTH = 6, 3
GROWTH = 1.4  # of what is stored, over a whole chain: the guests work a little at each link
SLOWER = 2.0
COUNT = ["sh", "-c", "n=0; while :; do n=$((n+1)); echo $n; sleep 0.02; done"]


@pytest.fixture
def client(daemon: Daemon, no_trace: None) -> Iterator[Client]:
    with Client(daemon.url) as client:
        yield client


def stored_mib(home: Path, but: set[str]) -> float:
    """Of all snapshots but those."""
    folders = [path for path in (home / "snapshots").iterdir() if path.name not in but]
    return sum(file.stat().st_blocks * 512 for folder in folders for file in folder.iterdir()) / (1 << 20)


def test_a_fork_of_a_fork_is_as_quick_and_small(daemon: Daemon, client: Client) -> None:
    """Each generation outlives the one before it; only one template is there at a time."""
    before = {path.name for path in (daemon.home / "snapshots").iterdir()}
    took_s, mib = [], []
    with ExitStack() as held:
        one = held.enter_context(Sandbox.create(client=client))
        ran(one, "trail = []")
        for depth in range(DEPTH):
            ran(one, f"trail.append({depth})")
            one.commands.run(f"echo {depth} >> trail", check=True)
            began = time.monotonic()
            (copy,) = one.fork()
            took_s.append(time.monotonic() - began)
            held.enter_context(copy)
            assert copy.info.forked_from == one.id
            one.kill()
            one = copy
            until(lambda: len({*(daemon.home / "snapshots").iterdir()}) == len(before) + 1, "the older one goes")
            mib.append(stored_mib(daemon.home, before))
        assert ran(one, "print(trail)") == f"{[*range(DEPTH)]}\n"
        assert one.files.read("trail").split() == [b"%d" % depth for depth in range(DEPTH)]
    until(lambda: {path.name for path in (daemon.home / "snapshots").iterdir()} == before, "the last one goes")
    print([f"{s:.2f} s" for s in took_s], [f"{m:.0f} MiB" for m in mib])
    assert mib[-1] < GROWTH * mib[0]
    assert min(took_s[-3:]) < SLOWER * min(took_s[:3])


def test_a_snapshot_of_a_clone_of_a_snapshot(client: Client) -> None:
    kept, image = [], "python"
    for depth in range(KEPT_DEPTH):
        with Sandbox.create(image, client=client) as one:
            ran(one, f"trail = globals().get('trail', []) + [{depth}]")
            kept.append(one.snapshot("chain"))
        image = f"chain@{depth + 1}"
    with Sandbox.create("chain", client=client) as last:
        assert ran(last, "print(trail)") == f"{[*range(KEPT_DEPTH)]}\n"
        assert last.info.image == f"chain@{KEPT_DEPTH}"
    shown = [client.snapshots.get(f"chain@{n + 1}") for n in range(KEPT_DEPTH)]
    assert [one["parent"] for one in shown] == ["python@1", "chain@1", "chain@2"]
    sizes = [one["own_bytes"] for one in shown]
    print(
        [f"{size >> 20} MiB" for size in sizes], [(one["pause_ms"], one["frozen_ms"], one["took_ms"]) for one in kept]
    )
    assert max(sizes) < GROWTH * min(sizes)
    assert all(one["shared_bytes"] > 0 for one in shown)
    for n in range(KEPT_DEPTH):  # none needs the one that it was made of
        client.snapshots.remove(f"chain@{n + 1}")
    with pytest.raises(NotFound):
        Sandbox.create("chain", client=client)


def test_it_is_kept_as_it_was_and_by_its_tag(client: Client) -> None:
    with Sandbox.create(client=client, env={"WHOSE": "kept"}, labels={"kind": "parent"}) as parent:
        ran(parent, "value = 1")
        with parent.commands.start(COUNT, detach=True) as counting:
            assert next(iter(counting.output())).data
        made = parent.snapshot("moment", tag="first")
        assert (made["contains_session_state"], made["parent"], made["tag"]) == (True, "python@1", "first")
        ran(parent, "value = 2")
        parent.snapshot("moment")
    with ExitStack() as held:
        copies = [held.enter_context(Sandbox.create("moment:first", client=client)) for _ in range(2)]
        assert [ran(copy, "print(value)") for copy in copies] == ["1\n"] * 2
        latest = held.enter_context(Sandbox.create("moment", client=client, env={"MORE": "of its own"}))
        assert ran(latest, "print(value)") == "2\n"
        assert latest.commands.run("echo $WHOSE $MORE").stdout == "kept of its own\n"
        assert (latest.info.labels, latest.info.name) == ({}, None)
        draws = at_once(lambda one: one.commands.run(["python3", "-c", LIGHT], check=True).stdout, copies)
        assert shared([[json.loads(text)] for text in draws]) == {}
        for copy in copies:
            (program,) = [one for one in copy.commands.list() if one["argv"] == COUNT]
            assert program["running"]
            with copy.commands.attach(program["exec_id"]) as again:
                assert next(iter(again.output())).data.startswith(b"1\n2\n")
        with pytest.raises(StateConflict) as refused:
            client.snapshots.remove("moment:first")
        assert all(copy.id in str(refused.value) for copy in copies)
        copies[0].suspend()
        for copy in copies[1:]:
            copy.kill()
        with pytest.raises(StateConflict, match=copies[0].id):
            client.snapshots.remove("moment:first")
    client.snapshots.remove("moment:first")
    client.snapshots.remove("moment")


def test_it_is_there_tomorrow(built: Path, tmp_path: Path, no_trace: None) -> None:
    """Another daemon finds it, as it finds what is suspended of a copy; what stood on a template of a fork, too."""
    home = home_like(built, tmp_path)
    with run_daemon(home) as daemon, Client(daemon.url) as client:
        parent = Sandbox.create(client=client, idle_timeout_s=None)
        ran(parent, "value = 'of yesterday'")
        parent.snapshot("yesterday")
        (copy,) = parent.fork()
        copy.suspend()
        made = Sandbox.create("yesterday", client=client, idle_timeout_s=None)
        made.suspend()
    with run_daemon(home) as daemon, Client(daemon.url) as client:
        with Sandbox.create("yesterday", client=client) as today:
            assert ran(today, "print(value)") == "of yesterday\n"
        for known in (copy, made):
            with Sandbox.connect(known.id, client=client) as again:
                assert ran(again, "print(value)") == "of yesterday\n"
                (another,) = again.fork()
                with another:
                    assert ran(another, "print(value)") == "of yesterday\n"
        client.snapshots.remove("yesterday")
        until(lambda: len(list((home / "snapshots").iterdir())) == 1, "only the image's own is left")
