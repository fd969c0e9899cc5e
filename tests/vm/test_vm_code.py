"""Ends, contexts and joins through the whole way: SDK, daemon, agent, interpreter."""

from __future__ import annotations

import time

import pytest

from casemate import errors
from casemate.sdk import (
    CodeTimedOut,
    ContextDied,
    Interrupted,
    Ok,
    Raised,
    Sandbox,
    SandboxDied,
)

pytestmark = pytest.mark.vm


def test_ends_have_types(sandbox: Sandbox) -> None:
    end = sandbox.run_code("1 / 0").end
    assert isinstance(end, Raised)
    assert end.name == "ZeroDivisionError"
    sandbox.run_code("kept = 41")
    assert sandbox.run_code("while True: pass", timeout_s=0.5).end == CodeTimedOut(0.5, state_kept=True)
    assert sandbox.run_code("kept + 1").text == "42"
    assert isinstance(sandbox.run_code("import os; os._exit(3)").end, ContextDied)


def test_contexts_are_apart(sandbox: Sandbox) -> None:
    other = sandbox.contexts.create(cwd="/tmp", env={"A": "b"})
    sandbox.run_code("x = 1")
    assert sandbox.run_code("import os; os.getcwd(), os.environ['A'], 'x' in dir()", context=other).text == (
        "('/tmp', 'b', False)"
    )
    assert {context.context_id for context in sandbox.contexts.list()} == {"default", other.context_id}
    assert "print" in sandbox.contexts.complete("pri").matches
    sandbox.contexts.restart("default")
    assert sandbox.run_code("'x' in dir()").text == "False"
    sandbox.contexts.remove(other)
    with pytest.raises(errors.NotFound):
        sandbox.run_code("1", context=other)
    with pytest.raises(errors.NotSupported):
        sandbox.contexts.create("no-such-language")


def test_a_detached_cell_is_joined_and_interrupted(sandbox: Sandbox) -> None:
    cell = sandbox.run_code("import time\nprint('one', flush=True)\ntime.sleep(1)\nprint('two')", detach=True)
    assert cell.join().logs.stdout == "one\ntwo\n"
    again = sandbox.join_code(cell.cell_id, 1)
    assert (again.logs.stdout, again.end, again.offset) == ("ne\ntwo\n", Ok(), 8)
    cell = sandbox.run_code("import time; time.sleep(100)", detach=True)
    time.sleep(0.3)
    cell.interrupt()
    assert cell.join().end == Interrupted(state_kept=True)


def test_the_end_of_the_sandbox_is_the_cells(sandbox: Sandbox) -> None:
    def kill(data: bytes) -> None:
        Sandbox.connect(sandbox.id).kill()

    end = sandbox.run_code("import time\nprint('begun', flush=True); time.sleep(100)", on_stdout=kill).end
    assert isinstance(end, SandboxDied)
    assert end.code == "killed"
