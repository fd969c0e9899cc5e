"""Eight copies of one moment, forked at once while programs draw: no two of them draw the same, and all keep what was.

A parent with a loop that draws in a cell and another in a thread, a program that waits before its first draw, and names
set. Before a copy's programs go on its generators are seeded anew; so also the very first draw counts.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest
from forking import (
    LIGHT,
    LOOPING,
    OF_THE_KERNEL,
    PRINTING,
    at_once,
    first_draw,
    let_wait,
    loops,
    ran,
    shared,
    since_it_is_a_copy,
    until,
)
from vm_world import Daemon

from casemate.sdk import Sandbox

pytestmark = [pytest.mark.vm, pytest.mark.slow]
COPIES = 8
IN_CELL, IN_THREAD = "/tmp/in-cell", "/tmp/in-thread"
SETTLED = 10  # rounds of a thread, after which the main one has had its turn
# It draws all that a cell does, in the process of the default context
THREAD = f"import threading; threading.Thread(target=loop, args=('{IN_THREAD}',), daemon=True).start()"


@dataclass
class Family:
    parent: Sandbox
    copies: list[Sandbox]

    @property
    def all(self) -> list[Sandbox]:
        return [self.parent, *self.copies]


def in_the_middle(sandbox: Sandbox) -> None:
    """It draws, a program waits to, and it has something that copies will have."""
    for path in (IN_CELL, IN_THREAD):
        sandbox.files.write(path, b"")
    ran(sandbox, LOOPING + THREAD)
    ran(sandbox, "value = 'of the parent'; drawn()")
    sandbox.files.write("/tmp/file", "of the parent")
    drawing = sandbox.contexts.create()
    sandbox.run_code(f"{LOOPING}loop('{IN_CELL}')", context=drawing, detach=True)
    let_wait(sandbox)
    until(lambda: all(len(loops(sandbox, path)) > 3 for path in (IN_CELL, IN_THREAD)), "it draws")


@pytest.fixture(scope="module")
def family(daemon: Daemon) -> Iterator[Family]:
    with ExitStack() as held:
        parent = held.enter_context(Sandbox.create(idle_timeout_s=None))
        in_the_middle(parent)
        copies = [held.enter_context(copy) for copy in parent.fork(COPIES)]
        for path in (IN_CELL, IN_THREAD):
            parent.files.write(f"{path}.stop", b"")
        yield Family(parent, copies)


def test_a_draw_that_waited_differs(family: Family) -> None:
    """It comes first: what a kernel draws later may differ by accident."""
    drawn = at_once(first_draw, family.all)
    assert len(set(drawn)) == COPIES + 1, drawn
    assert all(len(one.strip()) == 64 for one in drawn)


def test_what_a_running_cell_draws_differs(family: Family) -> None:
    assert shared(at_once(lambda copy: since_it_is_a_copy(copy, IN_CELL), family.copies)) == {}


def test_what_a_thread_draws_differs(family: Family) -> None:
    """The kernel's at once, the interpreter's as soon as its main thread, which seeds it, had its turn."""
    drawn = at_once(lambda copy: since_it_is_a_copy(copy, IN_THREAD, SETTLED + 3), family.copies)
    at_first = shared([rounds[:SETTLED] for rounds in drawn])
    print(f"its first {SETTLED} rounds share {at_first.keys()}")
    assert not at_first.keys() & set(OF_THE_KERNEL), at_first
    assert shared([rounds[SETTLED:] for rounds in drawn]) == {}


def warm(sandbox: Sandbox) -> bytes:
    """What a script prints in the copy of an interpreter that has waited for it since the image was built."""
    sandbox.files.write("/tmp/draw.py", PRINTING)
    with sandbox.commands.start(["/tmp/draw.py"], script="/tmp/draw.py") as running:
        return b"".join(piece.data for piece in running.output())


def test_what_contexts_and_new_programs_draw_differs(family: Family) -> None:
    in_context = at_once(lambda one: [json.loads(ran(one, "print(json.dumps(drawn()))"))], family.all)
    assert shared(in_context) == {}
    in_programs = at_once(warm, family.all)
    assert shared([[json.loads(text)] for text in in_programs]) == {}
    cold = at_once(lambda one: one.commands.run(["python3", "-c", LIGHT], check=True).stdout, family.all)
    assert shared([[json.loads(text)] for text in cold]) == {}
    for before, after in zip(in_context, in_programs, strict=True):  # who it is, is the same everywhere in it
        same = ("machine-id", "hostname", "boot_id")
        assert [before[0][name] for name in same] == [json.loads(after)[name] for name in same]


def test_all_have_what_was_and_none_what_another_changed(family: Family) -> None:
    def seen(sandbox: Sandbox) -> tuple[str, bytes]:
        return ran(sandbox, "print(value)").strip(), sandbox.files.read("/tmp/file")

    assert at_once(seen, family.all) == [("of the parent", b"of the parent")] * (COPIES + 1)
    for place, one in enumerate(family.all):
        ran(one, f"value = 'of {place}'")
        one.files.write("/tmp/file", f"of {place}")
        one.commands.run(f"touch /var/tmp/{place}; sync", check=True)
    assert at_once(seen, family.all) == [(f"of {n}", f"of {n}".encode()) for n in range(COPIES + 1)]
    there = at_once(lambda one: [entry.name for entry in one.files.list("/var/tmp")], family.all)
    assert [[name for name in names if name.isdecimal()] for names in there] == [[str(n)] for n in range(COPIES + 1)]
