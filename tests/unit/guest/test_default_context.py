"""The default context waits in the snapshot, before it is known whose it will be; its first cell tells it."""

from __future__ import annotations

import pytest
from cell_guest import CellGuest

from casemate.guest.surroundings import can_be_told


@pytest.fixture
def waiting(guest: CellGuest) -> int:
    """The pid of a default context that waits."""
    guest.server.surroundings.env, guest.server.surroundings.cwd = {}, "/tmp"
    if "default" in {context.context_id for context in guest.contexts.all()}:
        guest.contexts.remove("default")
    begun: list[bool] = []
    guest.contexts.start_default(guest.server.surroundings.job((), {}, None, None), lambda: begun.append(True))
    guest.until(lambda: begun)
    (context,) = (context for context in guest.contexts.all() if context.context_id == "default")
    pid: int = context.info()["pid"]
    return pid


def test_the_first_cell_finds_the_environment_that_was_said_later(guest: CellGuest, waiting: int) -> None:
    guest.server.surroundings.env = {"COLOUR": "blue"}
    guest.contexts.begin_anew()
    seen = guest.run("import os; os.getpid(), os.environ['COLOUR'], os.popen('echo $COLOUR').read()")
    assert seen.text == f"({waiting}, 'blue', 'blue\\n')"
    guest.server.surroundings.env = {"COLOUR": "red"}
    assert guest.run("os.environ['COLOUR']").text == "'blue'"  # it is somebody's now


def test_what_is_read_once_needs_another_process(guest: CellGuest, waiting: int) -> None:
    guest.server.surroundings.env = {"PYTHONPATH": "/nowhere"}
    assert guest.run("import os, sys; '/nowhere' in sys.path").text == "True"
    assert guest.run(f"os.getpid() == {waiting}").text == "False"


def test_another_folder_needs_another_process(guest: CellGuest, waiting: int) -> None:
    guest.server.surroundings.cwd = "/usr"
    assert guest.run("import os; os.getcwd()").text == "'/usr'"
    assert guest.run(f"os.getpid() == {waiting}").text == "False"


def test_it_draws_fresh_randomness_and_what_ran_before_is_forgotten(guest: CellGuest, waiting: int) -> None:
    guest.act("context", op="create", context_id="rehearsal")
    guest.run("1 + 1", context="rehearsal", cell_id="before")
    guest.act("context", op="remove", context_id="rehearsal")
    guest.contexts.begin_anew()
    assert guest.act("cell", op="join", cell_id="before", offset=0).denied is not None
    guest.run("import random; state = random.getstate()")
    guest.contexts.begin_anew()
    assert guest.run("random.getstate() == state").text == "False"


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [("TOKEN", "x", True), ("TZ", "Asia/Tokyo", True), ("LD_PRELOAD", "x.so", False), ("PATH", "/bin", False)],
)
def test_what_a_process_can_be_told(name: str, value: str, told: bool) -> None:
    assert can_be_told({}, {name: value}) is told
    assert can_be_told({name: value}, {}) is told
    assert not can_be_told({}, {"BIG": "x" * 100_000})
