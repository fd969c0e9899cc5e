"""``run_code`` in a real guest: one context that keeps its state."""

from __future__ import annotations

import pytest

from casemate.sdk import Sandbox

pytestmark = pytest.mark.vm


def test_state_stays_from_cell_to_cell(sandbox: Sandbox) -> None:
    assert sandbox.run_code("import numpy as np\nx = np.arange(5)").error is None
    execution = sandbox.run_code("print('out'); import sys; print('err', file=sys.stderr); int((x ** 2).sum())")
    assert execution.text == "30"
    assert (execution.logs.stdout, execution.logs.stderr) == ("out\n", "err\n")


def test_an_exception_is_an_answer(sandbox: Sandbox) -> None:
    execution = sandbox.run_code("def f():\n    return 1 / 0\nf()")
    assert execution.error is not None
    assert execution.error.name == "ZeroDivisionError"
    assert "return 1 / 0" in execution.error.traceback
    assert "casemate" not in execution.error.traceback
    assert sandbox.run_code("1 + 1").text == "2"


def test_a_syntax_error_points_at_its_place(sandbox: Sandbox) -> None:
    error = sandbox.run_code("x = = 1").error
    assert error is not None
    assert error.name == "SyntaxError"
    assert "^" in error.traceback


def test_too_long_ends_in_time_and_the_context_lives(sandbox: Sandbox) -> None:
    sandbox.run_code("kept = 41")
    error = sandbox.run_code("while True: pass", timeout_s=1).error
    assert error is not None
    assert error.name == "TimedOut"
    assert sandbox.run_code("kept + 1").text == "42"


def test_code_that_ends_the_interpreter_is_told(sandbox: Sandbox) -> None:
    error = sandbox.run_code("import os; os._exit(3)").error
    assert error is not None
    assert (error.name, error.value) == ("ContextDied", "exited with 3")
    assert sandbox.run_code("1 + 1").text == "2"


def test_it_runs_as_the_user_in_its_home(sandbox: Sandbox) -> None:
    assert sandbox.run_code("import os; os.getuid(), os.getcwd()").text == "(1000, '/home/user')"
