"""Code that breaks things, by accident or on purpose: the cell ends, and the next one runs."""

from __future__ import annotations

import os
import signal
import time

import pytest
from context_bench import ContextBench, Seen


def still_works(context: ContextBench) -> None:
    seen = context.run("import sys; print('out'); print('err', file=sys.stderr); display('shown'); 'result'")
    assert (seen.stdout, seen.stderr) == ("out\n", "err\n")
    assert [one["data"]["text/plain"] for one in seen.results] == ["'shown'", "'result'"]


@pytest.mark.parametrize(
    "code",
    [
        "import os; os.close(1)",
        "import os; os.close(2); os.close(0)",
        "import sys; sys.stdout = None",
        "import sys; sys.stderr = None; 1 / 0",
        "import sys; sys.stdout = sys.stderr = sys.stdin = sys.__stdout__ = None; display(1)",
        "import sys; sys.stdout.close()",
        "import sys; sys.stderr.close(); import warnings; warnings.warn('x')",
        "import sys; del sys.stdout",
        "import sys; del sys.stderr, sys.stdin",
        "import sys; sys.stdout.detach()",
        "import sys; sys.displayhook = None; sys.excepthook = None",
        "import builtins; del builtins._",
        "import gc; gc.disable(); gc.set_debug(gc.DEBUG_STATS); gc.set_debug(0)",
        "import sys; sys.settrace(lambda *a: 1 / 0)",
        "import sys; sys.setrecursionlimit(60); 1 / 0",
        "import linecache; linecache.cache.clear()",
        "import linecache; linecache.cache = None",
        "In.clear(); Out.clear()",
        "del In, Out, _i, _, __",
        "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)",
        "import threading; threading.Thread = None; import json; json.dumps = json.loads = None",
        "import traceback; traceback.TracebackException = None; 1 / 0",
        "import time, os; time.sleep = os.write = None",
        "globals().clear()",
        "import sys; sys.modules['__main__'] = None",
        "import asyncio; asyncio.get_event_loop_policy().set_event_loop(None); await asyncio.sleep(0)",
        "import asyncio; asyncio.get_running_loop().stop(); await asyncio.sleep(0)",
        "import asyncio; asyncio.get_running_loop().close(); await asyncio.sleep(0)",
        "import faulthandler; faulthandler.enable(); faulthandler.dump_traceback_later(0.01); x = [0] * 10",
        "import locale; locale.setlocale(locale.LC_ALL, 'C')",
        "import os; os.chdir('/proc/self/fd')",
    ],
)
def test_what_a_cell_breaks_is_mended(fresh_context: ContextBench, code: str) -> None:
    fresh_context.run(code)
    if "sys.settrace" in code:
        fresh_context.run("pass")  # what the cell has put there is asked once more
    still_works(fresh_context)


def test_replaced_stream_stays_replaced(fresh_context: ContextBench) -> None:
    fresh_context.run("import io, sys\nsys.stdout = mine = io.StringIO()")
    assert fresh_context.run("print('kept')").stdout == ""
    assert fresh_context.run("mine.getvalue()").text == "'kept\\n'"
    fresh_context.run("sys.stdout = sys.__stdout__")
    still_works(fresh_context)


def test_recursion_of_each_kind(fresh_context: ContextBench) -> None:
    for code in (
        "def f(): f()\nf()",
        "class R:\n    def __repr__(self): return repr(self)\nR()",
        "x, y = [], []; x.append(y); y.append(x); x == y",
        "class G:\n    def __getattribute__(self, name): return getattr(self, name)\nG().x",
        "eval('(' * 500 + ')' * 500)",
    ):
        seen = fresh_context.run(code)
        assert seen.kind == "error", code
    still_works(fresh_context)


def test_one_line_of_100_mb(fresh_context: ContextBench) -> None:
    fresh_context.order("print('x' * 100_000_000)")
    seen = Seen()
    total = 0
    while not seen.end:
        fresh_context.read_something(seen)
        total += sum(len(what) for kind, what in seen.order if kind == "stdout")
        seen.order.clear()
    seen = fresh_context.run("'after'")
    assert total + len(seen.stdout) == 100_000_001
    assert seen.text == "'after'"


def test_cell_of_5_mb(fresh_context: ContextBench) -> None:
    code = "x = [\n" + "    '" + "y" * 96 + "',\n"
    code = "x = [\n" + "".join(f"    '{n:094d}',\n" for n in range(50_000)) + "]\nlen(x)"
    assert len(code) > 5_000_000
    assert fresh_context.run(code).text == "50000"
    assert fresh_context.run("# " + "z" * 5_000_000 + "\n1 +").end["name"] == "SyntaxError"


def test_output_that_is_not_utf8(fresh_context: ContextBench) -> None:
    fresh_context.order(
        "import os, sys; n = os.write(1, b'\\xff\\xfe'); print('\\udc80'); sys.stdout.buffer.write(b'\\x80')"
    )
    seen = fresh_context.read_to_end()
    assert b"".join(what for kind, what in seen.order if kind == "stdout") == b"\xff\xfe\x80\n\x80"


def test_swallowed_interrupt_ends_as_the_cell_does(fresh_context: ContextBench) -> None:
    fresh_context.order("import time\ntry: time.sleep(60)\nexcept KeyboardInterrupt: print('swallowed')\n'went on'")
    fresh_context.interrupt()
    seen = fresh_context.read_to_end()
    assert (seen.end, seen.stdout, seen.text) == ({"kind": "ok"}, "swallowed\n", "'went on'")


def test_interrupts_at_any_moment(fresh_context: ContextBench) -> None:
    """Each cell is struck some tenths of a millisecond after it began: before, in, or just at its end."""
    kinds = set()
    for n in range(300):
        fresh_context.order("for i in range(200): x = i\nx")
        time.sleep(n * 0.000004)
        os.killpg(fresh_context.pid, signal.SIGINT)
        seen = fresh_context.read_to_end()
        kinds.add(seen.kind)
        assert seen.kind in ("ok", "interrupted"), seen
    assert fresh_context.run("6 * 7").text == "42"


def test_handler_of_the_users_own_stays(fresh_context: ContextBench) -> None:
    run = fresh_context.run
    run("import signal, time\ndef mine(number, frame): raise LookupError('from the handler')")
    run("old = signal.signal(signal.SIGINT, mine)")
    fresh_context.order("time.sleep(60)")
    fresh_context.interrupt()
    assert fresh_context.read_to_end().end["name"] == "LookupError"
    run("signal.signal(signal.SIGINT, old)")
    fresh_context.order("time.sleep(60)")
    fresh_context.interrupt()
    assert fresh_context.read_to_end().end == {"kind": "interrupted"}


def test_interrupt_of_an_await(fresh_context: ContextBench) -> None:
    code = (
        "import asyncio\nasync def f():\n    try: await asyncio.sleep(60)\n    finally: print('cleaned up')\nawait f()"
    )
    fresh_context.order(code)
    fresh_context.interrupt()
    seen = fresh_context.read_to_end()
    assert (seen.end, seen.stdout) == ({"kind": "interrupted"}, "cleaned up\n")
    assert fresh_context.run("await asyncio.sleep(0, 'fine')").text == "'fine'"


def test_interrupt_reaches_a_child(fresh_context: ContextBench) -> None:
    fresh_context.order("import subprocess; subprocess.run(['sleep', '60'])")
    fresh_context.interrupt()
    assert fresh_context.read_to_end().end == {"kind": "interrupted"}


def test_fork_in_a_cell(fresh_context: ContextBench) -> None:
    code = (
        "import os\npid = os.fork()\n"
        "if pid: print('parent', os.waitpid(pid, 0)[1])\nelse: display('child'); print('printed')"
    )
    seen = fresh_context.run(code)
    assert seen.stdout == "'child'\nprinted\nparent 0\n"
    assert seen.results == []
    seen = fresh_context.run("pid = os.fork()\nif not pid: 1 / 0\nos.waitpid(pid, 0)[1] >> 8")
    assert seen.text == "1"
    assert "ZeroDivisionError" in seen.stderr
    still_works(fresh_context)


def test_fork_with_threads_that_show(fresh_context: ContextBench) -> None:
    code = (
        "import os, threading, time\nstop = False\n"
        "def show():\n    while not stop: display('x' * 1000)\n"
        "t = threading.Thread(target=show); t.start()\n"
        "for n in range(20):\n"
        "    pid = os.fork()\n    if not pid: break\n    os.waitpid(pid, 0)\nstop = True\nif pid: t.join()"
    )
    assert fresh_context.run(code).kind == "ok"
    still_works(fresh_context)


def test_multiprocessing(fresh_context: ContextBench) -> None:
    code = (
        "import multiprocessing\ndef work(n): return n * n\n"
        "with multiprocessing.get_context('fork').Pool(2) as pool: x = pool.map(work, range(4))\nx"
    )
    assert fresh_context.run(code).text == "[0, 1, 4, 9]"
    still_works(fresh_context)


def test_thread_that_outlives_its_cell(fresh_context: ContextBench) -> None:
    code = (
        "import threading, time\ngo, gone = threading.Event(), threading.Event()\n"
        "def late():\n    go.wait(); time.sleep(0.1); display('late'); print('printed'); gone.set()\n"
        "threading.Thread(target=late).start()"
    )
    assert fresh_context.run(code).kind == "ok"
    seen = fresh_context.run("go.set()")
    assert (seen.kind, seen.results) == ("ok", [])
    time.sleep(0.3)
    seen = fresh_context.run("gone.wait()")  # what was shown when no cell ran has become text
    assert seen.stdout == "'late'\nprinted\n"
    seen = fresh_context.run("threading.Thread(target=lambda: display('in time')).start(); time.sleep(0.2)")
    assert [one["data"]["text/plain"] for one in seen.results] == ["'in time'"]


def test_task_that_outlives_its_cell(fresh_context: ContextBench) -> None:
    code = (
        "import asyncio\nticks = 0\nasync def tick():\n    global ticks\n"
        "    while True:\n        await asyncio.sleep(0.01); ticks += 1\n"
        "async def leave():\n    await asyncio.sleep(0.05); raise SystemExit\n"
        "async def fail():\n    raise LookupError('in the background')\n"
        "await asyncio.sleep(0); tasks = [asyncio.create_task(f()) for f in (tick, leave, fail)]"
    )
    assert fresh_context.run(code).kind == "ok"
    time.sleep(0.5)
    seen = fresh_context.run("ticks > 5")
    assert seen.text == "True"
    assert "SystemExit" in seen.stderr
    fresh_context.run("tasks[0].cancel()")
    assert "in the background" in fresh_context.run("del tasks; import gc; gc.collect();").stderr


def test_child_that_outlives_its_cell(fresh_context: ContextBench) -> None:
    seen = fresh_context.run("import subprocess; p = subprocess.Popen('sleep 0.3; echo late', shell=True)")
    assert seen.kind == "ok"
    assert fresh_context.run("p.wait()").stdout == "late\n"


def test_flood_from_a_child_does_not_hold_up_results(fresh_context: ContextBench) -> None:
    """The order can't be kept with who never stops writing; the cell goes on all the same."""
    fresh_context.chunk = 512
    code = "import subprocess, time\np = subprocess.Popen(['yes']); time.sleep(0.2)\ndisplay('got through'); p.kill()"
    fresh_context.order(code)
    seen = Seen()
    deadline = time.monotonic() + 5
    while not seen.results and time.monotonic() < deadline:
        time.sleep(0.001)  # slowly, so that the pipe is never seen empty
        fresh_context.read_something(seen)
        seen.order[:] = [one for one in seen.order if one[0] == "result"]
    assert [one["data"]["text/plain"] for one in seen.results] == ["'got through'"]
    fresh_context.chunk = 65536
    assert fresh_context.read_to_end().kind == "ok"
    fresh_context.run("p.wait()")


def test_results_wait_for_who_does_not_read(fresh_context: ContextBench) -> None:
    fresh_context.order("print('first'); display('second')")
    time.sleep(1.5)
    seen = fresh_context.read_to_end()
    assert [kind for kind, _ in seen.order] == ["stdout", "result"]


def test_blocked_write_is_interrupted(fresh_context: ContextBench) -> None:
    fresh_context.order("print('x' * 1_000_000)")
    fresh_context.interrupt()
    assert fresh_context.read_to_end().end == {"kind": "interrupted"}
    fresh_context.order("for n in range(10_000): display('x' * 10_000)")
    fresh_context.interrupt()
    assert fresh_context.read_to_end().end == {"kind": "interrupted"}
    still_works(fresh_context)


def test_kill_of_itself_is_the_kernels_to_tell(fresh_context: ContextBench) -> None:
    fresh_context.order("import os; os._exit(3)")
    fresh_context._bench.loop.run_until(lambda: bool(fresh_context.status))
    assert os.waitstatus_to_exitcode(fresh_context.status[0]) == 3


@pytest.mark.parametrize("name", ["stdout", "stderr"])
@pytest.mark.parametrize("stream", ["io.StringIO", "Odd(ZeroDivisionError)", "Odd(SystemExit)"])
def test_a_stream_that_cannot_be_flushed_ends_nothing(fresh_context: ContextBench, name: str, stream: str) -> None:
    fresh_context.run(
        "import io, sys\n"
        "class Odd:\n"
        "    def __init__(self, error): self.error = error\n"
        "    def write(self, text): pass\n"
        "    def flush(self): raise self.error\n"
        f"sys.{name} = {stream}"
    )
    assert fresh_context.run(f"sys.{name} = sys.__{name}__").kind == "ok"
    still_works(fresh_context)


def test_without_a_descriptor_left_long_code_is_an_error(fresh_context: ContextBench) -> None:
    fresh_context.run(
        "import os\ngot = []\ntry:\n    while True: got.append(os.open('/dev/null', os.O_RDONLY))\nexcept OSError: pass"
    )
    for seen in (fresh_context.run("1\n" * 20_000), fresh_context.run("1", stdin=b"x")):
        assert (seen.kind, seen.end["name"]) == ("error", "OSError")
        assert "too many files" in seen.end["value"]
    fresh_context.run("for fd in got: os.close(fd)")
    assert fresh_context.run("input()", stdin=b"x").text == "'x'"
    still_works(fresh_context)


def test_a_cell_that_closes_its_own_stdin(fresh_context: ContextBench) -> None:
    code = (
        "import os\n"
        "for fd in os.listdir('/proc/self/fd'):\n"
        "    try:\n"
        "        if 'order' in os.readlink('/proc/self/fd/' + fd): os.close(int(fd))\n"
        "    except OSError: pass"
    )
    assert fresh_context.run(code, stdin=b"x").kind == "ok"
    still_works(fresh_context)


def test_a_task_that_fails_without_a_stderr_does_not_end_the_context(fresh_context: ContextBench) -> None:
    fresh_context.run(
        "import asyncio, sys\n"
        "async def leave(): raise SystemExit\n"
        "async def later():\n"
        "    await asyncio.sleep(0.05)\n"
        "    await leave()\n"
        "task = asyncio.get_running_loop().create_task(later())\n"
        "await asyncio.sleep(0)\n"
        "sys.stderr.close()"
    )
    time.sleep(0.3)
    assert "closed file" in fresh_context.run("1").stderr
    still_works(fresh_context)


@pytest.mark.parametrize("then", ["await asyncio.sleep(0.05)", "raise SystemExit"])
def test_a_task_that_forks_between_cells_gets_none_of_their_code(fresh_context: ContextBench, then: str) -> None:
    pid = fresh_context.run("import asyncio, os; os.getpid()").text
    begun = fresh_context.run(
        "async def split():\n"
        "    await asyncio.sleep(0.05)\n"
        "    if os.fork() == 0:\n"
        f"        {then}\n"
        "tasks = [asyncio.create_task(split()), asyncio.create_task(asyncio.sleep(60))]\n"
        "await asyncio.sleep(0)"
    )
    assert begun.kind == "ok"
    time.sleep(0.3)
    assert {fresh_context.run("os.getpid()").text for _ in range(20)} == {pid}
