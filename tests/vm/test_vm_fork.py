"""Copies of a living sandbox: what each has of its parent, and that the parent does not notice.

One parent with all that a copy may have of it, forked once for the file's first half.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import pytest
from forking import at_once, ran, until
from vm_world import Daemon

from casemate.errors import InvalidSpec, NotFound, StateConflict
from casemate.sdk import Client, Exited, Sandbox, Signaled
from casemate.sdk._sync.ports import Connection

pytestmark = [pytest.mark.vm, pytest.mark.slow]
COUNT = ["sh", "-c", "n=0; while :; do n=$((n+1)); echo $n; sleep 0.02; done"]
ENDED = ["sh", "-c", "echo said; echo told >&2; exit 3"]
CAT, SHELL = ["cat"], ["sh"]
ECHO = [
    "python3",
    "-c",
    """
import socket
with socket.create_server(('127.0.0.1', 7777)) as server:
    print('ready', flush=True)
    while True:
        there, _ = server.accept()
        try:
            while piece := there.recv(100): there.sendall(piece)
        except ConnectionError: print('reset', flush=True)
""",
]
ITS_OWN = """
import socket
one, other = socket.socketpair()
def talk():
    one.sendall(b'x')
    return other.recv(1).decode()
print(talk())
"""
RUNNING = "import time\nfor n in range(10**6):\n  print(n, flush=True); time.sleep(0.05)"
# A number, the longest gap between two looks at the clock, and the hour
GAPS = """
import time
last, longest, n = time.monotonic(), 0.0, 0
while True:
    time.sleep(0.005)
    now, n = time.monotonic(), n + 1
    longest, last = max(longest, now - last), now
    print(n, longest, flush=True)
"""
ROUNDS = 5
CLOCK_S = 0.1
STILL_S = 2.0  # for its programs, by their own clock; how long it takes is the bench's to say


@dataclass
class Family:
    parent: Sandbox
    copies: list[Sandbox]
    ended: str  # a cell
    runs: str
    connection: Connection


@pytest.fixture(scope="module")
def family(daemon: Daemon) -> Iterator[Family]:
    with ExitStack() as held:
        made = Sandbox.create(
            name="the-parent",
            env={"WHOSE": "the parent's"},
            cwd="/tmp",
            labels={"kind": "parent"},
            idle_timeout_s=700,
            on_idle="suspend",
            park_after_s=60,
            max_duration_s=3000,
            auto_resume=False,
        )
        parent = held.enter_context(made)
        for argv in (COUNT, ENDED, ECHO):
            with parent.commands.start(argv, detach=True) as running:
                assert next(iter(running.output())).data
        held.enter_context(parent.commands.start(CAT, stdin=True))
        with parent.commands.terminal(SHELL, detach=True) as terminal:
            terminal.feed(b"x=on-the-terminal; echo re''ady\n")
            wait_for(terminal.output(), b"ready\r\n")
        assert ran(parent, ITS_OWN) == "x\n"
        ended = parent.run_code("print('from a cell')", detach=True)
        ended.join()
        runs = parent.run_code(RUNNING, context=parent.contexts.create(), detach=True)
        connection = held.enter_context(parent.ports.connect(7777))
        assert echoed(connection, b"before")
        copies = [held.enter_context(copy) for copy in parent.fork(2)]
        yield Family(parent, copies, ended.cell_id, runs.cell_id, connection)


def wait_for(pieces: Iterator[bytes], text: bytes) -> bytes:
    seen = b""
    for piece in pieces:
        seen += piece
        if text in seen:
            return seen
    raise AssertionError(f"it never said {text!r}, only {seen[-2000:]!r}")


def echoed(connection: Connection, data: bytes) -> bool:
    connection.send(data)
    return connection.receive() == data


def exec_of(sandbox: Sandbox, argv: Sequence[str]) -> str:
    (found,) = [one["exec_id"] for one in sandbox.commands.list() if one["argv"] == [word[:200] for word in argv]]
    return str(found)


def runs(sandbox: Sandbox, argv: Sequence[str]) -> bool:
    (found,) = [one["running"] for one in sandbox.commands.list() if one["argv"] == [word[:200] for word in argv]]
    return bool(found)


def said(sandbox: Sandbox, argv: Sequence[str], text: bytes) -> bytes:
    """All that one of its programs has said up to *text*."""
    with sandbox.commands.attach(exec_of(sandbox, argv)) as running:
        return wait_for((piece.data for piece in running.output()), text)


def test_who_it_is(family: Family) -> None:
    was = family.parent.refresh()
    for copy in family.copies:
        now = copy.refresh()
        assert (now.state, now.name, now.forked_from, now.attached) == ("running", None, was.id, False)
        same = ("image", "vcpus", "memory_mib", "disk_mib", "labels", "network", "isolation")
        policy = ("idle_timeout_s", "on_idle", "park_after_s", "auto_resume", "max_duration_s")
        for name in (*same, *policy):
            assert getattr(now, name) == getattr(was, name), name
        assert now.created_at > was.created_at
    assert len({was.id, *(copy.id for copy in family.copies)}) == 3
    assert (was.name, was.forked_from) == ("the-parent", None)


def test_its_programs_run_on_under_new_ids(family: Family) -> None:
    ids = [{one["exec_id"] for one in sandbox.commands.list()} for sandbox in (family.parent, *family.copies)]
    assert [len(some) for some in ids] == [5, 5, 5]
    assert len(set.union(*ids)) == 15
    for copy in family.copies:
        for exec_id in ids[0]:
            with pytest.raises(NotFound), copy.commands.attach(exec_id):
                pass
            with pytest.raises(NotFound):
                copy.commands.signal(exec_id, "KILL")
        far = b"".join(b"%d\n" % n for n in range(1, 400))  # from the first line on, and on after the fork
        assert said(copy, COUNT, b"\n399\n").startswith(far)
        with copy.commands.attach(exec_of(copy, ENDED)) as ended:
            assert {piece.stream: piece.data for piece in ended.output()} == {"stdout": b"said\n", "stderr": b"told\n"}
        assert ended.end is not None
        assert ended.end.end == Exited(3)


def test_what_ends_in_one_runs_on_in_the_others(family: Family) -> None:
    first, second = family.copies
    with first.commands.attach(exec_of(first, COUNT)) as counting:
        counting.signal("KILL")
        assert counting.wait().end == Signaled(9)
    assert [runs(one, COUNT) for one in (family.parent, first, second)] == [True, False, True]


def test_what_somebody_followed_is_detached(family: Family) -> None:
    """Its follower is at the parent's. Its standard input is open for whoever comes."""
    for copy in family.copies:
        with copy.commands.attach(exec_of(copy, CAT)) as cat:
            cat.feed(b"to the copy\n", eof=False)
            assert next(iter(cat.output())).data == b"to the copy\n"
        assert runs(copy, CAT)
    assert runs(family.parent, CAT)


def test_its_terminal_is_there(family: Family) -> None:
    for one in (family.parent, *family.copies):
        with one.commands.attach_terminal(exec_of(one, SHELL)) as terminal:
            terminal.feed(b"echo at-$x\n")
            wait_for(terminal.output(), b"at-on-the-terminal\r\n")


def test_the_hosts_connections_are_reset_and_its_own_are_not(family: Family) -> None:
    assert echoed(family.connection, b"after")
    for copy in family.copies:
        assert said(copy, ECHO, b"reset\n") == b"ready\nreset\n"
        with copy.ports.connect(7777) as connection:
            assert echoed(connection, b"anew")
        assert ran(copy, "print(talk())") == "x\n"


def test_its_environment_and_contexts(family: Family) -> None:
    contexts = {one.context_id for one in family.parent.contexts.list()}
    for copy in family.copies:
        assert copy.commands.run("echo $WHOSE; pwd").stdout == "the parent's\n/tmp\n"
        assert {one.context_id for one in copy.contexts.list()} == contexts


def test_its_cells_are_not_found_by_the_parents_ids(family: Family) -> None:
    for copy in family.copies:
        for cell_id in (family.ended, family.runs):
            with pytest.raises(NotFound):
                copy.join_code(cell_id)
    assert family.parent.join_code(family.ended).logs.stdout == "from a cell\n"
    family.parent._code.interrupt(family.runs)
    end = family.parent.join_code(family.runs)
    assert end.error is not None
    assert end.logs.stdout.split() == [str(n) for n in range(len(end.logs.stdout.split()))]


def test_a_parent_at_rest_is_woken_or_says_no(family: Family) -> None:
    """That nobody resumes by a call is not resumed by a fork either."""
    family.parent.suspend()
    with pytest.raises(StateConflict):
        family.parent.fork()
    assert family.parent.refresh().state == "suspended"
    family.parent.resume()
    (copy,) = family.parent.fork(labels={"kind": "another"})
    with copy:
        assert (copy.info.labels, family.parent.refresh().labels) == ({"kind": "another"}, {"kind": "parent"})
    for count in (0, 65):
        with pytest.raises(InvalidSpec):
            family.parent.fork(count)


def test_copies_rest_and_go_on_without_their_parent(daemon: Daemon, no_trace: None) -> None:
    with Client(daemon.url) as client, ExitStack() as held:
        parent = held.enter_context(Sandbox.create(client=client))
        ran(parent, "kept = 'in memory'")
        parent.suspend()
        copies = [held.enter_context(copy) for copy in parent.fork(2)]  # it is resumed for that
        assert parent.refresh().state == "running"
        parent.kill()
        at_once(lambda copy: copy.suspend(), copies)
        assert [copy.refresh().state for copy in copies] == ["suspended"] * 2
        copies[0].kill()
        assert ran(copies[1], "print(kept)") == "in memory\n"
        (grandchild,) = copies[1].fork()
        held.enter_context(grandchild)
        assert grandchild.info.forked_from == copies[1].id
        assert ran(grandchild, "print(kept)") == "in memory\n"


def test_the_parent_loses_nothing_and_its_clock_is_right(daemon: Daemon, no_trace: None) -> None:
    seen = bytearray()
    with Sandbox.create(idle_timeout_s=None) as sandbox:
        follower = threading.Thread(target=follow, args=(daemon.url, sandbox.id, seen))
        follower.start()
        until(lambda: seen.count(b"\n") > 20, "it counts")
        for _ in range(ROUNDS):
            for copy in sandbox.fork():
                copy.kill()
        was = seen.count(b"\n")
        until(lambda: seen.count(b"\n") > was + 20, "it counts on")
        before = time.time()
        clock = float(sandbox.commands.run("date +%s.%N").stdout)
        assert before - CLOCK_S < clock < time.time() + CLOCK_S
        sandbox.commands.signal(exec_of(sandbox, ["python3", "-c", GAPS]), "KILL")
        follower.join(20)
        assert not follower.is_alive()
    rounds = [line.split() for line in bytes(seen).split(b"\n")[:-1]]
    assert [int(number) for number, _ in rounds] == list(range(1, len(rounds) + 1))
    still_s = float(rounds[-1][1])
    print(f"its programs stood still for at most {still_s * 1000:.0f} ms by their own clock")
    assert still_s < STILL_S


def follow(url: str, sandbox_id: str, into: bytearray) -> None:
    with (
        Client(url) as client,
        Sandbox.connect(sandbox_id, client=client).commands.start(["python3", "-c", GAPS]) as running,
    ):
        for piece in running.output():
            into += piece.data
        assert running.end is not None
