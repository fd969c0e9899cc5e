"""HELLO to a copy: what was there goes on under ids of its own, and draws numbers of its own; natively, no VM."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cell_guest import CellGuest, Seen

from casemate.guest import context_process, control, twisters
from casemate.guest.cgroups import Groups
from casemate.guest.context_process import RESEED_SIGNAL
from casemate.sandbox import Introduction

# Not by a seed of the user's, which would stay. FLAG is a file that is there once the copy goes on.
BEGIN = """
import os, random, signal, subprocess, sys, threading, time
expected = random.Random(1).random()
random._inst.seed(1)

def draw():
    print(random.random() == expected, flush=True)

def wait():
    while not os.path.exists({flag!r}):
        pass

"""
IN_ITS_LOOP = "BEGUN; wait(); draw()"
ASLEEP = "BEGUN; select = __import__('select'); select.select([], [], [], 0.5); draw()"
IN_A_THREAD = "BEGUN; thread = threading.Thread(target=lambda: (wait(), draw())); thread.start(); thread.join()"


@pytest.fixture
def frozen() -> Iterator[list[int]]:
    """Process groups that are stopped, as the freezer stops them: what is sent to them waits."""
    pids: list[int] = []
    yield pids
    thaw(pids)


def freeze(pids: list[int], *more: int) -> None:
    for pid in more:
        os.killpg(pid, signal.SIGSTOP)
        pids.append(pid)


def thaw(pids: list[int]) -> None:
    while pids:
        os.killpg(pids.pop(), signal.SIGCONT)


def copy(guest: CellGuest, **what: Any) -> None:
    """As in a copy: the conversation is a new one, and the first word in it is this HELLO."""
    guest.begin(Introduction("copied", copy=True, **what))
    guest.turn(0)


def contexts(guest: CellGuest) -> dict[str, Any]:
    found = guest.act("context", op="list").accepted
    assert found is not None
    return {info["context_id"]: info for info in found["contexts"]}


def cells(guest: CellGuest) -> dict[str, Any]:
    found = guest.act("cell", op="list").accepted
    assert found is not None
    return {cell["cell_id"]: cell for cell in found["cells"]}


def execs(guest: CellGuest) -> dict[str, Any]:
    found = guest.act("exec", op="list").accepted
    assert found is not None
    return {program["exec_id"]: program for program in found["execs"]}


def code(seen: Seen) -> str | None:
    return seen.denied.code if seen.denied is not None else None


def test_execs_stay_detached_under_new_ids(guest: CellGuest, frozen: list[int]) -> None:
    script = "echo before; read word; echo $word"
    seen = guest.act("exec", op="start", exec_id="mine", argv=["sh", "-c", script], stdin=True, on_disconnect="kill")
    guest.until(lambda: seen.stdout)
    assert seen.accepted is not None
    freeze(frozen, seen.accepted["pid"])
    copy(guest)
    (new,) = [known for known, program in execs(guest).items() if program["running"]]
    assert new != "mine"
    assert code(guest.act("exec", op="attach", exec_id="mine")) == "not-found"
    looked = guest.act("exec", op="attach", exec_id=new)
    guest.host.reset(looked.number, "left", "")  # its starter would have ended it so
    joined = guest.act("exec", op="attach", exec_id=new)
    thaw(frozen)
    guest.host.send(joined.number, 1, b"after\n")
    guest.until(lambda: joined.end is not None)
    assert joined.stdout == "before\nafter\n"
    assert joined.end is not None
    assert joined.end["end"] == {"kind": "exited", "code": 0}
    assert guest.act("exec", op="remove", exec_id=new).accepted == {}


def test_one_that_was_about_to_start_does_or_is_forgotten(guest: CellGuest) -> None:
    """It is copied between the order and the child's answer; whoever ordered it is in the other one."""
    before = set(execs(guest))
    for exec_id, program in (("there", "true"), ("not there", "/no/such/program")):
        guest.open("exec", op="start", exec_id=exec_id, argv=[program])
    while chunk := guest.host.outgoing():
        guest.server.receive(chunk)
    copy(guest)

    def settled() -> bool:
        found = execs(guest)
        return len(found) == len(before) + 1 and not any(program["running"] for program in found.values())

    guest.until(settled)
    assert not {"there", "not there"} & set(execs(guest))
    assert all(program["argv"] != ["/no/such/program"] for program in execs(guest).values())


def test_cells_stay_under_new_ids_also_ended_ones(guest: CellGuest, frozen: list[int]) -> None:
    guest.run("print('long ago')", cell_id="ended")
    running = guest.begin_cell("print('begun'); word = input(); print('still', 1)", cell_id="running", stdin=b"x\n")
    waiting = guest.begin_cell("print('last')", cell_id="waiting")
    guest.until(lambda: running.stdout and waiting.answered)
    freeze(frozen, contexts(guest)["default"]["pid"])
    before = cells(guest)
    copy(guest)
    after = cells(guest)
    assert len(after) == len(before)
    assert not set(after) & set(before)
    assert [cell["state"] for cell in after.values()] == [cell["state"] for cell in before.values()]
    for known in ("ended", "running", "waiting"):
        assert code(guest.act("cell", op="join", cell_id=known)) == "not-found"
    names = list(after)[-3:]
    thaw(frozen)
    joined = [guest.join(name) for name in names]
    guest.until(lambda: all(seen.over for seen in joined))
    assert [seen.stdout for seen in joined] == ["long ago\n", "begun\nstill 1\n", "last\n"]


def going_on_copied(guest: CellGuest, frozen: list[int], flag: Path, cell: str) -> str:
    """What *cell*, which runs when its sandbox is copied, prints in the copy."""
    running = guest.begin_cell(BEGIN.format(flag=str(flag)) + cell.replace("BEGUN", "print('begun', flush=True)"))
    guest.until(lambda: running.stdout)
    freeze(frozen, contexts(guest)["default"]["pid"])
    copy(guest)
    joined = guest.join(list(cells(guest))[-1])
    flag.touch()
    thaw(frozen)
    guest.until(lambda: joined.over)
    assert joined.kind == "ok", (joined.end, joined.stdout)
    assert joined.stderr == ""
    return joined.stdout.removeprefix("begun\n")


@pytest.mark.parametrize("cell", [IN_ITS_LOOP, ASLEEP, IN_A_THREAD])
def test_what_runs_in_a_context_draws_anew(guest: CellGuest, frozen: list[int], tmp_path: Path, cell: str) -> None:
    assert going_on_copied(guest, frozen, tmp_path / "flag", cell) == "False\n"


@pytest.mark.parametrize("ways", ["signal", "twisters", ""])
def test_each_way_does_it_and_without_both_nothing_would(
    guest: CellGuest, frozen: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ways: str
) -> None:
    """So the test above can fail."""
    if ways != "signal":
        monkeypatch.setattr(context_process, "_is_in_mask", lambda *_: False)
    if ways != "twisters":
        monkeypatch.setattr(twisters, "refill", lambda *_: None)
    expected = "False\n" if ways else "True\n"
    assert going_on_copied(guest, frozen, tmp_path / "flag", IN_ITS_LOOP) == expected


def test_the_users_seed_stays(guest: CellGuest, frozen: list[int], tmp_path: Path) -> None:
    cell = "random.seed(1); BEGUN; wait(); draw()"
    assert going_on_copied(guest, frozen, tmp_path / "flag", cell) == "True\n"
    guest.act("context", op="restart", context_id="default")


def test_the_next_cell_draws_anew(guest: CellGuest) -> None:
    guest.run(BEGIN.format(flag=""))
    copy(guest)
    assert guest.run("draw()").stdout == "False\n"


def test_a_cell_on_its_way_draws_anew_in_any_language(guest: CellGuest, frozen: list[int]) -> None:
    """Its order was written before anybody knew of the copy."""
    assert guest.act("context", op="create", context_id="shell", language="bash").accepted is not None
    seed = "eval 'RANDO''M=1'"  # not so that it counts as the user's
    expected = guest.run(f"{seed}; echo $RANDOM", context="shell").stdout
    assert guest.run(f"{seed}; echo $RANDOM", context="shell").stdout == expected
    guest.run(seed, context="shell")
    freeze(frozen, contexts(guest)["shell"]["pid"])
    guest.begin_cell("echo $RANDOM", context="shell")
    guest.let_pass(0.05)
    assert [cell["state"] for cell in cells(guest).values()][-1] == "running"
    copy(guest)
    joined = guest.join(list(cells(guest))[-1])
    thaw(frozen)
    guest.until(lambda: joined.over)
    assert joined.kind == "ok"
    assert joined.stdout != expected
    guest.act("context", op="remove", context_id="shell")


@pytest.mark.parametrize("others", ["signal.SIG_DFL", "signal.SIG_IGN"])
def test_who_does_not_catch_it_is_not_sent_it(guest: CellGuest, frozen: list[int], tmp_path: Path, others: str) -> None:
    cell = (
        f"number = {RESEED_SIGNAL}; ours = signal.signal(number, {others}); BEGUN; wait(); signal.signal(number, ours)"
    )
    assert going_on_copied(guest, frozen, tmp_path / "flag", cell + "; draw()") == "False\n"
    assert guest.run("draw()").stdout == "False\n"


def test_a_program_that_a_cell_runs_is_left_alone(guest: CellGuest, frozen: list[int], tmp_path: Path) -> None:
    cell = "BEGUN; print(subprocess.run(['sleep', '0.3']).returncode)"
    assert going_on_copied(guest, frozen, tmp_path / "flag", cell) == "0\n"


def test_whatever_name_a_process_gives_itself(guest: CellGuest, frozen: list[int], tmp_path: Path) -> None:
    """The kernel cuts it after 15 bytes, also within a letter."""
    cell = "open('/proc/self/comm', 'w').write('x' * 14 + 'é'); BEGUN; wait(); draw()"
    assert going_on_copied(guest, frozen, tmp_path / "flag", cell) == "False\n"


def test_a_child_that_blocks_it_is_not_sent_it(guest: CellGuest, frozen: list[int], tmp_path: Path) -> None:
    """As one on its way into a program does: it forgets its handlers first, and then lets signals in."""
    child = f"""
read, write = os.pipe()
signal.pthread_sigmask(signal.SIG_BLOCK, [{RESEED_SIGNAL}])
if not (pid := os.fork()):
    os.write(write, b"x")
    wait()
    signal.signal({RESEED_SIGNAL}, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [{RESEED_SIGNAL}])
    os._exit(0)
signal.pthread_sigmask(signal.SIG_UNBLOCK, [{RESEED_SIGNAL}])
os.read(read, 1)
BEGUN
print(os.waitpid(pid, 0)[1])
"""
    assert going_on_copied(guest, frozen, tmp_path / "flag", child) == "0\n"


def test_the_environment_is_laid_over_the_old_one(guest: CellGuest) -> None:
    guest.begin(Introduction("guest", env={"KEPT": "old", "CHANGED": "old"}, cwd="/usr"))
    guest.turn(0)
    copy(guest, env={"CHANGED": "new", "ADDED": "new"})
    seen = guest.open("exec", op="start", exec_id="env", argv=["sh", "-c", "echo $KEPT $CHANGED $ADDED; pwd"])
    guest.until(lambda: seen.over)
    assert seen.stdout == "old new new\n/usr\n"


class Icy(Groups):
    """Its processes are frozen when the test says so."""

    def __init__(self) -> None:
        self.acts: list[bool] = []
        self.frozen = False

    def freeze(self, frozen: bool) -> None:
        self.is_stopped = frozen
        self.acts.append(frozen)

    def is_frozen(self) -> bool:
        return self.frozen

    def find_held(self) -> str | None:
        return "7 dd"


@pytest.fixture
def icy(guest: CellGuest, monkeypatch: pytest.MonkeyPatch) -> Icy:
    icy = Icy()
    monkeypatch.setattr(guest.server, "groups", icy)
    return icy


def test_a_quiesce_that_fails_leaves_nothing_frozen(
    guest: CellGuest, icy: Icy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "FREEZE_LIMIT_S", 0.1)
    denied = guest.act("control", op="quiesce").denied
    assert denied is not None
    assert (denied.code, denied.body["message"][-4:]) == ("state-conflict", "7 dd")
    assert icy.acts == [True, False]


@pytest.mark.parametrize("how", ["reset", "lost"])
def test_a_quiesce_nobody_waits_for_leaves_nothing_frozen(guest: CellGuest, icy: Icy, how: str) -> None:
    seen = guest.open("control", op="quiesce")
    guest.until(lambda: icy.acts)
    if how == "lost":
        guest.server.lose()
        guest.begin()
    else:
        guest.host.reset(seen.number, "cancelled", "")
    guest.let_pass(0.05)
    icy.frozen = True
    guest.let_pass(0.05)
    assert icy.acts == [True, False]
    assert seen.accepted is None


def test_a_copy_stays_frozen_until_it_is_thawed(guest: CellGuest, icy: Icy) -> None:
    icy.frozen = True
    assert guest.act("control", op="quiesce").accepted == {}
    copy(guest)
    guest.let_pass(0.05)
    assert icy.acts == [True]
    assert guest.act("control", op="thaw").accepted == {}
    assert icy.acts == [True, False]


def test_the_host_that_comes_back_after_a_quiesce_finds_all_going_on(guest: CellGuest, icy: Icy) -> None:
    icy.frozen = True
    assert guest.act("control", op="quiesce").accepted == {}
    guest.server.lose()
    guest.begin(Introduction("guest", fresh=False))
    guest.turn(0)
    assert icy.acts == [True, False]
