"""Results, ends, contexts and joins through the whole way: SDK, daemon, agent, interpreter."""

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


def test_results_come_in_order_with_the_output(sandbox: Sandbox) -> None:
    seen: list[object] = []
    execution = sandbox.run_code(
        "import sys\nprint('a')\ndisplay({'application/json': {'n': 1}}, raw=True)\nprint('b', file=sys.stderr)\n6 * 7",
        on_stdout=lambda data: seen.append(("out", data)),
        on_stderr=lambda data: seen.append(("err", data)),
        on_result=lambda result: seen.append(result.type),
    )
    assert seen == [("out", b"a\n"), "display", ("err", b"b\n"), "result"]
    assert (execution.end, execution.text, execution.results[0].json) == (Ok(), "42", {"n": 1})
    assert execution.truncated_bytes == 0


def test_a_frame_comes_as_a_table_too(sandbox: Sandbox) -> None:
    execution = sandbox.run_code("import pandas as pd\npd.DataFrame({'a': range(3000), 'b': 'x'})")
    table = execution.results[-1].table
    assert table is not None
    assert (table.shape, [column.name for column in table.columns]) == ((3000, 2), ["a", "b"])
    assert len(table.rows) == 1000


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


def test_a_cell_goes_on_over_suspend_and_resume(sandbox: Sandbox) -> None:
    cell = sandbox.run_code("import time\nfor n in range(20): print(n, flush=True); time.sleep(0.1)", detach=True)
    sandbox.suspend()
    assert cell.join().logs.stdout == "".join(f"{n}\n" for n in range(20))


def test_the_end_of_the_sandbox_is_the_cells(sandbox: Sandbox) -> None:
    def kill(data: bytes) -> None:
        Sandbox.connect(sandbox.id).kill()

    end = sandbox.run_code("import time\nprint('begun', flush=True); time.sleep(100)", on_stdout=kill).end
    assert isinstance(end, SandboxDied)
    assert end.code == "killed"
