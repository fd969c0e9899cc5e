"""Code that means no good, or has bad luck: each cell ends typed and in time, and the other context lives.

One sandbox for the file, as an agent would have it all day; each test has a context of its own to ruin.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from vm_world import Daemon

from casemate.errors import InvalidSpec, NotFound, NotSupported, StateConflict
from casemate.sdk import (
    CodeOutOfMemory,
    CodeTimedOut,
    Context,
    ContextDied,
    Execution,
    Interrupted,
    Ok,
    Raised,
    Sandbox,
)

pytestmark = pytest.mark.vm
SOON_S = 60.0  # far more than anything here takes; what it guards against is for ever


@pytest.fixture(scope="module")
def lasting(daemon: Daemon) -> Iterator[Sandbox]:
    with Sandbox.create(idle_timeout_s=None) as sandbox:
        sandbox.run_code("witness = 'lives'")
        yield sandbox


@pytest.fixture
def context(lasting: Sandbox) -> Iterator[Context]:
    made = lasting.contexts.create()
    lasting.run_code("before = 41", context=made)
    yield made
    lasting.contexts.remove(made)
    assert lasting.run_code("witness").text == "'lives'"


def state_is_kept(sandbox: Sandbox, context: Context) -> bool:
    return sandbox.run_code("before + 1", context=context).text == "42"


def died(execution: Execution) -> str:
    assert isinstance(execution.end, ContextDied), execution
    return execution.end.reason


@pytest.mark.parametrize("code", ["while True: pass", "import time; time.sleep(10**9)"])
def test_what_never_ends_is_interrupted_and_state_stays(lasting: Sandbox, context: Context, code: str) -> None:
    end = lasting.run_code(code, context=context, timeout_s=0.5).end
    assert end == CodeTimedOut(after_s=0.5, state_kept=True)
    assert state_is_kept(lasting, context)


def test_c_code_that_ignores_signals_is_killed_and_that_is_said(lasting: Sandbox, context: Context) -> None:
    code = "import ctypes; c = ctypes.PyDLL(None); c.signal(2, 1); c.sleep(10**6)"
    end = lasting.run_code(code, context=context, timeout_s=0.5, grace_s=0.5).end
    assert end == CodeTimedOut(after_s=0.5, state_kept=False)
    assert lasting.run_code("'before' in dir()", context=context).text == "False"


def test_an_interrupt_that_is_swallowed_ends_in_a_kill(lasting: Sandbox, context: Context) -> None:
    code = "import time\nwhile True:\n    try: time.sleep(600)\n    except BaseException: pass"
    end = lasting.run_code(code, context=context, timeout_s=2, grace_s=0.5).end  # not before the code has begun
    assert end == CodeTimedOut(after_s=2, state_kept=False)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import os; os._exit(3)", "exited with 3"),
        ("import os; os.kill(os.getpid(), 9)", "signal 9"),
        ("import ctypes; ctypes.string_at(0)", "signal 11"),
    ],
)
def test_a_context_that_dies_says_how(lasting: Sandbox, context: Context, code: str, said: str) -> None:
    assert said in died(lasting.run_code("print('last words')\n" + code, context=context))
    assert lasting.run_code("1 + 1", context=context).text == "2"


def test_endless_recursion_is_an_error(lasting: Sandbox, context: Context) -> None:
    execution = lasting.run_code("def f(): return f()\nf()", context=context)
    assert execution.error is not None
    assert execution.error.name == "RecursionError"
    assert len(execution.error.traceback) < 100_000
    assert state_is_kept(lasting, context)


def test_all_memory_ends_the_one_who_eats_it(lasting: Sandbox, context: Context) -> None:
    end = lasting.run_code("a = []\nwhile True: a.append(bytearray(8 << 20))", context=context, timeout_s=SOON_S).end
    assert end == CodeOutOfMemory()
    assert lasting.run_code("1 + 1", context=context).text == "2"


def test_a_hundred_megabytes_on_one_line_are_counted_and_cut(lasting: Sandbox, context: Context) -> None:
    seen = 0

    def count(piece: bytes) -> None:
        nonlocal seen
        seen += len(piece)

    execution = lasting.run_code("print('x' * 100_000_000)", context=context, on_stdout=count)
    assert execution.end == Ok()
    assert seen == 100_000_001
    assert execution.truncated_bytes + len(execution.logs.stdout) >= 100_000_001
    assert len(execution.logs.stdout) < 50_000_000


def test_a_repr_that_raises_leaves_the_others(lasting: Sandbox, context: Context) -> None:
    code = "class R:\n    def _repr_html_(self): raise ValueError('no')\n    def __repr__(self): return 'plain'\nR()"
    execution = lasting.run_code(code, context=context)
    assert execution.end == Ok()
    assert execution.text == "plain"
    assert execution.results[0].html is None


def test_a_repr_that_hangs_is_interrupted(lasting: Sandbox, context: Context) -> None:
    code = "class R:\n    def _repr_html_(self):\n        while True: pass\nR()"
    end = lasting.run_code(code, context=context, timeout_s=1).end
    assert isinstance(end, CodeTimedOut)
    assert end.state_kept
    assert state_is_kept(lasting, context)


def test_a_repr_of_50_mb_is_cut_and_says_how_much(lasting: Sandbox, context: Context) -> None:
    code = "class R:\n    def _repr_html_(self): return 'h' * 50_000_000\n    def __repr__(self): return 'plain'\nR()"
    execution = lasting.run_code(code, context=context)
    assert execution.end == Ok()
    (result,) = execution.results
    assert result.cut["text/html"] == 50_000_000
    assert len(result.html or "") < 50_000_000
    assert result.text == "plain"


@pytest.mark.parametrize(
    "code", ["import os; os.close(1)", "import sys; sys.stdout = None", "import sys; sys.stdout.close()"]
)
def test_no_stdout_is_no_end(lasting: Sandbox, context: Context, code: str) -> None:
    lasting.run_code(code, context=context)
    assert state_is_kept(lasting, context)
    assert lasting.run_code("print('to nobody, or not')", context=context).end in (Ok(), *_raised(lasting, context))
    assert lasting.run_code("6 * 7", context=context).text == "42"


def _raised(sandbox: Sandbox, context: Context) -> list[Raised]:
    end = sandbox.run_code("print('to nobody, or not')", context=context).end
    return [end] if isinstance(end, Raised) else []


def test_what_outlives_the_cell_does_not_hold_it_up(lasting: Sandbox, context: Context) -> None:
    code = (
        "import subprocess, threading, time\n"
        "threading.Thread(target=time.sleep, args=(600,), daemon=True).start()\n"
        "child = subprocess.Popen(['sleep', '600'])\n"
        "'done'"
    )
    assert lasting.run_code(code, context=context, timeout_s=SOON_S).text == "'done'"
    assert lasting.run_code("child.poll() is None", context=context).text == "True"


def test_a_fork_in_a_cell_ends_with_it_and_its_value_is_but_text(lasting: Sandbox, context: Context) -> None:
    code = "import os\npid = os.fork()\nif pid: os.waitpid(pid, 0)\nprint('parent' if pid else 'child')\npid > 0"
    execution = lasting.run_code(code, context=context, timeout_s=SOON_S)
    assert execution.end == Ok()
    assert execution.text == "True"
    assert sorted(execution.logs.stdout.split()) == ["False", "child", "parent"]
    assert len(execution.results) == 1
    assert state_is_kept(lasting, context)


def test_bytes_that_are_no_text_come_through(lasting: Sandbox, context: Context) -> None:
    execution = lasting.run_code(r"import os; _ = os.write(1, b'\xff\xfe ok\n')", context=context)
    assert execution.end == Ok()
    assert execution.logs.stdout == "\ufffd\ufffd ok\n"


def test_a_syntax_error_points_at_its_place(lasting: Sandbox, context: Context) -> None:
    end = lasting.run_code("x = = 1", context=context).end
    assert isinstance(end, Raised)
    assert end.name == "SyntaxError"
    assert "^" in end.traceback


def test_a_cell_of_five_megabytes(lasting: Sandbox, context: Context) -> None:
    code = "text = '''" + "z" * 5_000_000 + "'''\nlen(text)"
    assert lasting.run_code(code, context=context, timeout_s=SOON_S).text == "5000000"


def test_code_that_replaces_our_hooks(lasting: Sandbox, context: Context) -> None:
    code = (
        "import builtins, gc, signal, sys\n"
        "sys.displayhook = sys.excepthook = None\n"
        "builtins.repr = builtins.display = builtins.print = None\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "sys.settrace(lambda *_: None); gc.disable()"
    )
    assert lasting.run_code(code, context=context).end == Ok()
    execution = lasting.run_code("40 + 2", context=context)
    assert execution.end == Ok() or isinstance(execution.end, Raised)
    assert lasting.run_code("while True: pass", context=context, timeout_s=0.5, grace_s=0.5).end in (
        CodeTimedOut(0.5, True),
        CodeTimedOut(0.5, False),
    )


def test_code_that_writes_on_our_socket_ends_its_own_context_only(lasting: Sandbox, context: Context) -> None:
    code = (
        "import os, stat\n"
        "for fd in range(3, 64):\n"
        "    try:\n"
        '        if stat.S_ISSOCK(os.fstat(fd).st_mode): os.write(fd, b\'{"event":"end","id":999}\')\n'
        "    except OSError: pass\n"
    )
    execution = lasting.run_code(code, context=context, timeout_s=SOON_S)
    assert isinstance(execution.end, ContextDied), execution.end
    assert lasting.run_code("1 + 1", context=context).text == "2"


def test_input_meets_the_end_unless_something_is_given(lasting: Sandbox, context: Context) -> None:
    end = lasting.run_code("input('name? ')", context=context).end
    assert isinstance(end, Raised)
    assert end.name == "EOFError"
    assert lasting.run_code("input()", context=context, stdin="Ada\n").text == "'Ada'"


def test_unknown_languages_and_contexts_are_named(lasting: Sandbox) -> None:
    with pytest.raises(NotFound, match="nowhere"):
        lasting.run_code("1", context="nowhere")
    with pytest.raises((NotSupported, InvalidSpec), match="klingon"):
        lasting.contexts.create("klingon")


def test_a_hundred_cells_at_once_all_run_or_are_refused_with_the_bound(lasting: Sandbox, context: Context) -> None:
    def run(number: int) -> str | None:
        try:
            return lasting.run_code(f"{number} + 0", context=context, timeout_s=SOON_S).text
        except StateConflict as refused:
            refusals.append(refused.message)
            return None

    refusals: list[str] = []
    with ThreadPoolExecutor(100) as threads:
        texts = list(threads.map(run, range(100)))
    assert all("wait" in refusal for refusal in refusals)
    assert [text for number, text in enumerate(texts) if text not in (None, str(number))] == []
    assert sum(text is not None for text in texts) >= 64
    assert state_is_kept(lasting, context)


def test_contexts_run_side_by_side(lasting: Sandbox, context: Context) -> None:
    with ThreadPoolExecutor(1) as threads:
        long = threads.submit(lasting.run_code, "import time; time.sleep(600)", context=context, timeout_s=SOON_S)
        deadline = time.monotonic() + SOON_S
        while not any(
            known.state == "busy" for known in lasting.contexts.list() if known.context_id == context.context_id
        ):
            assert time.monotonic() < deadline
        assert lasting.run_code("witness").text == "'lives'"
        lasting.contexts.interrupt(context)
        assert long.result(SOON_S).end == Interrupted(state_kept=True)
    assert state_is_kept(lasting, context)
