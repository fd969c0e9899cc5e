"""What only a guest's own kernel shows of contexts: memory, rights, what a killed one leaves behind."""

from __future__ import annotations

import time

import pytest
from tests.fair import fair_clock

from casemate.sdk import CodeOutOfMemory, CodeTimedOut, ContextDied, FileChange, Sandbox

pytestmark = pytest.mark.vm

EAT = "eaten = []\nwhile True: eaten.append(bytearray(b'x' * 2**24))"


@pytest.mark.parametrize(
    "code",
    [EAT, f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {EAT!r}])"],
    ids=["itself", "its child"],
)
def test_who_eats_the_memory_goes_alone(sandbox: Sandbox, code: str) -> None:
    other = sandbox.contexts.create()
    sandbox.run_code("kept = 'kept'", context=other)
    assert sandbox.run_code(code, timeout_s=100).end == CodeOutOfMemory()
    assert sandbox.run_code("kept", context=other).text == "'kept'"
    assert sandbox.run_code("1 + 1").text == "2"
    assert sandbox.commands.run(["echo", "alive"]).stdout == "alive\n"


def test_a_killed_context_leaves_no_process(sandbox: Sandbox) -> None:
    started = sandbox.run_code(
        "import subprocess\n"
        "for _ in range(3): subprocess.Popen(['setsid', 'sleep', '12345'])\n"
        "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "while True: pass",
        timeout_s=1.5,
        grace_s=0.5,
    )
    assert started.end == CodeTimedOut(1.5, state_kept=False)
    until = fair_clock() + 10
    while sandbox.commands.run(["pgrep", "-f", "sleep 12345"]).stdout:
        assert fair_clock() < until
        time.sleep(0.1)


def test_code_that_ignores_signals_is_ended(sandbox: Sandbox) -> None:
    code = "import ctypes\nlibc = ctypes.CDLL(None)\nlibc.signal(2, ctypes.c_void_p(1))\nlibc.sleep(1000)"
    assert sandbox.run_code(code, timeout_s=3, grace_s=0.5).end == CodeTimedOut(3, state_kept=False)
    assert sandbox.run_code("import ctypes; ctypes.string_at(0)").end == ContextDied("killed by signal 11")


def test_the_files_a_cell_changed(sandbox: Sandbox) -> None:
    execution = sandbox.run_code("open('new.txt', 'w').write('x'); None")
    assert execution.files_changed == (FileChange("/home/user/new.txt", "created"),)
    sandbox.files.write("/home/user/by-another.txt", "x")
    assert sandbox.run_code("import os; os.remove('new.txt')").files_changed == (
        FileChange("/home/user/new.txt", "deleted"),
    )
    assert sandbox.run_code("1").files_changed == ()


def test_many_contexts_and_many_cells(sandbox: Sandbox) -> None:
    contexts = [sandbox.contexts.create() for _ in range(5)]
    began = fair_clock()
    cells = [
        sandbox.run_code("import time; time.sleep(0.5)", context=context, detach=True)
        for context in contexts
        for _ in range(2)
    ]
    for cell in cells:
        assert cell.join().ok
    assert fair_clock() - began < 4
