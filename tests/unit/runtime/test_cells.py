"""Cells in the default context: results, output, order, interruption, death."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

import pytest
from zygote_bench import Bench

from casemate.guest.interpreter import Cell
from casemate.guest.zygote import Job


@dataclass
class Ran:
    streams: dict[int, bytes] = field(default_factory=lambda: {1: b"", 2: b""})
    body: dict[str, Any] | None = None
    cell: Cell | None = None

    @property
    def end(self) -> dict[str, Any]:
        assert self.body is not None
        end: dict[str, Any] = self.body["end"]
        return end

    @property
    def text(self) -> str | None:
        assert self.body is not None
        text: str | None = self.body["text"]
        return text


def begin(bench: Bench, code: str | bytes, timeout_s: float | None = None) -> Ran:
    ran = Ran()

    def output(stream: int, data: bytes) -> None:
        assert ran.body is None, "output after the end"
        ran.streams[stream] += data

    def ended(body: dict[str, Any]) -> None:
        assert ran.body is None
        ran.body = body

    ran.cell = bench.interpreter.run(
        code.encode() if isinstance(code, str) else code,
        Job([], bench.env(), "/tmp", None),
        timeout_s=timeout_s,
        output=output,
        ended=ended,
    )
    assert ran.cell is not None
    return ran


def run(bench: Bench, code: str | bytes, timeout_s: float | None = None) -> Ran:
    ran = begin(bench, code, timeout_s)
    bench.loop.run_until(lambda: ran.body is not None)
    return ran


def test_namespace_lives_on(bench: Bench) -> None:
    assert run(bench, "x = 6\ndef f(n): return n * x").text is None
    assert run(bench, "f(7)").text == "42"
    assert run(bench, "_").text == "42"
    assert run(bench, "__name__, __import__('sys').modules['__main__'].x").text == "('__main__', 6)"
    assert run(bench, "f(1);").text == "6"
    assert run(bench, "None").text is None
    assert run(bench, "").end == {"kind": "ok"}


def test_streams(bench: Bench) -> None:
    ran = run(
        bench,
        "import os, subprocess, sys\n"
        "print('out'); print('err', file=sys.stderr)\n"
        "subprocess.run(['echo', 'from a child'])\n"
        "os.write(1, b'raw\\n'); print('no newline', end='')",
    )
    assert ran.streams == {1: b"out\nfrom a child\nraw\nno newline", 2: b"err\n"}
    assert ran.end == {"kind": "ok"}


def test_error_shows_the_cell_and_nothing_of_ours(bench: Bench) -> None:
    ran = run(bench, "def g():\n    return {}['key']\n\ng()")
    end = ran.end
    assert (end["kind"], end["name"], end["value"]) == ("error", "KeyError", "'key'")
    assert end["traceback"].startswith('Traceback (most recent call last):\n  File "<cell ')
    assert "return {}['key']" in end["traceback"]
    assert "context.py" not in end["traceback"]


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("1 +", "SyntaxError"),
        (b"'\xff'", "UnicodeDecodeError"),
        ("raise SystemExit(3)", "SystemExit"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("class Bad(Exception):\n    def __str__(self): raise ValueError\nraise Bad", "Bad"),
        ("class Ugly:\n    def __repr__(self): return 1 / 0\nUgly()", "ZeroDivisionError"),
        ("def f(): f()\nf()", "RecursionError"),
        ("input()", "EOFError"),
        ("import sys; sys.stdout.close(); 1 / 0", "ZeroDivisionError"),
    ],
)
def test_errors(bench: Bench, code: str | bytes, name: str) -> None:
    ran = run(bench, code)
    assert (ran.end["kind"], ran.end["name"]) == ("error", name)
    assert "context.py" not in ran.end["traceback"]
    run(bench, "import sys; sys.stdout = open(1, 'w', closefd=False, buffering=1)")


def test_chained_error_hides_us_too(bench: Bench) -> None:
    ran = run(bench, "try:\n    1 / 0\nexcept ZeroDivisionError as e:\n    raise ValueError('x') from e")
    assert "direct cause" in ran.end["traceback"]
    assert "context.py" not in ran.end["traceback"]


def test_futures_stay_on(bench: Bench) -> None:
    run(bench, "from __future__ import annotations")
    assert run(bench, "def h(x: Unknown): pass\nh.__annotations__").text == "{'x': 'Unknown'}"


def test_large_output_arrives_complete_before_the_end(bench: Bench) -> None:
    ran = run(bench, "for i in range(40000): print('line', i)\nprint('last', end='')")
    assert ran.streams[1].splitlines()[:2] == [b"line 0", b"line 1"]
    assert ran.streams[1].endswith(b"line 39999\nlast")
    assert len(ran.streams[1].splitlines()) == 40001


def test_paused_output_holds_the_cell_and_the_end(bench: Bench) -> None:
    ran = begin(bench, "print('x' * 300_000)\nimport os; os.write(2, b'done')")
    assert ran.cell is not None
    bench.loop.run_until(lambda: len(ran.streams[1]) > 0)
    ran.cell.pause()
    seen = len(ran.streams[1])
    ticks: list[int] = []
    bench.loop.call_later(0.2, lambda: ticks.append(1))
    bench.loop.run_until(lambda: bool(ticks))
    assert (len(ran.streams[1]), ran.streams[2], ran.body) == (seen, b"", None)
    ran.cell.resume()
    bench.loop.run_until(lambda: ran.body is not None)
    assert (len(ran.streams[1]), ran.streams[2]) == (300_001, b"done")


def test_long_texts_are_cut_to_fit_a_frame(bench: Bench) -> None:
    text = run(bench, "'\\u20ac' * 10_000_000").text
    assert text is not None
    assert len(text) < 48_000
    assert "characters left out" in text


def test_time_out_interrupts_and_keeps_the_context(bench: Bench) -> None:
    run(bench, "kept = 1")
    ran = run(bench, "import time\nprint('begun')\ntime.sleep(60)", timeout_s=0.3)
    assert ran.end == {"kind": "timed-out", "after_s": 0.3}
    assert ran.streams[1] == b"begun\n"
    assert run(bench, "kept").text == "1"


def test_time_out_reaches_a_subprocess(bench: Bench) -> None:
    ran = run(bench, "import subprocess; subprocess.run(['sleep', '60'])", timeout_s=0.3)
    assert ran.end["kind"] == "timed-out"


def test_time_out_of_a_stubborn_cell_kills_the_context(bench: Bench) -> None:
    run(bench, "gone = 1")
    code = "import time\nwhile True:\n    try: time.sleep(60)\n    except KeyboardInterrupt: pass"
    ran = run(bench, code, timeout_s=0.2)
    assert ran.end == {"kind": "timed-out", "after_s": 0.2}
    assert run(bench, "gone").end["name"] == "NameError"


def test_death_is_told_and_the_next_cell_starts_anew(bench: Bench) -> None:
    ran = run(bench, "print('last words', flush=True); import os; os._exit(3)")
    assert ran.streams[1] == b"last words\n"
    assert ran.end == {"kind": "died", "reason": "exited with 3"}
    ran = run(bench, "import os; os.kill(os.getpid(), 9)")
    assert ran.end == {"kind": "died", "reason": "killed by signal 9"}
    assert run(bench, "1 + 1").text == "2"


def test_cells_queue_in_order(bench: Bench) -> None:
    run(bench, "import time; seen = []")
    rans = [begin(bench, f"time.sleep(0.05); seen.append({n}); seen") for n in range(3)]
    bench.loop.run_until(lambda: all(ran.body is not None for ran in rans))
    assert [ran.text for ran in rans] == ["[0]", "[0, 1]", "[0, 1, 2]"]


def test_cancelled_cells(bench: Bench) -> None:
    running, waiting = begin(bench, "import time; time.sleep(60)"), begin(bench, "1")
    assert running.cell is not None
    assert waiting.cell is not None
    waiting.cell.cancel()
    bench.loop.run_until(lambda: waiting.body is not None and running.cell.begun_at > 0)  # type: ignore[union-attr]
    assert waiting.end["kind"] == "died"
    running.cell.cancel()
    bench.loop.run_until(lambda: running.body is not None)
    assert running.end["name"] == "KeyboardInterrupt"


def test_fork_in_a_cell_comes_to_an_end(bench: Bench) -> None:
    ran = run(
        bench,
        "import os\npid = os.fork()\nif pid: print('parent', os.waitpid(pid, 0)[1])\nelse: print('child')",
    )
    assert sorted(ran.streams[1].splitlines()) == [b"child", b"parent 0"]
    assert run(bench, "1").text == "1"


def test_background_thread_writes_into_the_next_cell(bench: Bench) -> None:
    run(
        bench,
        "import threading as t\ngo = t.Event()\nt.Thread(target=lambda: (go.wait(), print('late'))).start()",
    )
    ran = run(bench, "import time\ngo.set()\ntime.sleep(0.1)")
    assert ran.streams[1] == b"late\n"


def test_lying_context_is_killed(bench: Bench) -> None:
    forge = (
        "import gc, socket\ns = [o for o in gc.get_objects() if isinstance(o, socket.socket) and o.fileno() >= 0][0]\n"
    )
    for message in (b"[]", b"{}\xff", b'{"event": "end", "id": %d, "end": 1}', b"[" * 100_000):
        run(bench, "1")
        serial = bench.interpreter._serial + 1
        packet = message.replace(b"%d", str(serial).encode())
        ran = run(bench, forge + f"s.sendall({packet!r}); import time; time.sleep(60)")
        assert ran.end == {"kind": "died", "reason": "killed by signal 9"}, message
    assert run(bench, "2").text == "2"


def test_reseed_between_cells(bench: Bench) -> None:
    run(bench, "import random; random.seed(1)")
    bench.interpreter.reseed()
    first = run(bench, "random.random()").text
    run(bench, "random.seed(1)")
    assert run(bench, "random.random()").text != first


def test_no_descriptor_is_left(bench: Bench) -> None:
    run(bench, "1")
    bench.loop.run_until(lambda: len(bench.zygote._waiting) == 2)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        run(bench, "import os; os._exit(0)")
    run(bench, "1")
    bench.loop.run_until(lambda: len(bench.zygote._waiting) == 2)
    assert len(os.listdir("/proc/self/fd")) == before
