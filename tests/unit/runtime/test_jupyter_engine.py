"""Kernels of other languages as contexts: one of Scheme, and Python's own."""

from __future__ import annotations

import importlib.util
import os
import platform
import signal
import site
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from context_bench import ContextBench
from tests.fair import fair_clock
from zygote_bench import Bench

from casemate.runtime.engines import EngineMissing
from casemate.runtime.jupyter_engine import choose_kernel

ENV = {
    "PYTHONPATH": site.getsitepackages()[0],
    "JUPYTER_PATH": str(Path(sys.prefix) / "share" / "jupyter"),
    "IPYTHONDIR": "/tmp/casemate-test-ipython",
}
needs_kernels = pytest.mark.skipif(
    importlib.util.find_spec("calysto_scheme") is None, reason="calysto-scheme is not installed"
)


def open_context(bench: Bench, language: str) -> ContextBench:
    if os.path.realpath(bench.python) != os.path.realpath(sys.executable):
        pytest.skip("the kernels are installed for the Python of the tests alone")
    return ContextBench(bench, language, **ENV)


@pytest.fixture(scope="module")
def scheme(bench: Bench) -> Iterator[ContextBench]:
    context = open_context(bench, "scheme")
    assert context.ready["event"] == "ready", context.ready
    assert context.ready["about"]["language"] == "scheme"
    yield context
    context.kill()


@pytest.fixture(scope="module")
def python(bench: Bench) -> Iterator[ContextBench]:
    context = open_context(bench, "jupyter:python3")
    assert context.ready["about"] == {"language": "python", "version": platform.python_version()}
    yield context
    context.kill()


SPECS = {"ir": {"language": "R"}, "python3": {"language": "python"}, "xeus-lua": {"language": "lua"}}


def test_a_kernel_is_found_by_its_name_or_its_language() -> None:
    assert choose_kernel("jupyter:ir", SPECS) == "ir"
    assert choose_kernel("ir", SPECS) == "ir"
    assert choose_kernel("r", SPECS) == "ir"
    assert choose_kernel("lua", SPECS) == "xeus-lua"


@pytest.mark.parametrize("language", ["fortran", "jupyter:R", "jupyter:", "", "x" * 10_000])
def test_a_kernel_that_is_not_there(language: str) -> None:
    with pytest.raises(EngineMissing, match=r"there are: ir \(R\), python3 \(python\), xeus-lua \(lua\)") as caught:
        choose_kernel(language, SPECS)
    assert len(str(caught.value)) < 300


def test_without_kernels_the_context_says_so(bench: Bench) -> None:
    context = ContextBench(bench, "fortran")
    assert context.ready["event"] == "failed"
    assert "fortran" in context.ready["reason"]
    context.kill()


@needs_kernels
def test_another_language(scheme: ContextBench) -> None:
    assert scheme.run("(define x 6)").results == []
    assert scheme.run("(* x 7)").text == "42"
    seen = scheme.run('(display "hi") (newline)')
    assert (seen.stdout, seen.end) == ("hi\n", {"kind": "ok"})
    seen = scheme.run("(car '())")
    assert (seen.kind, seen.end["name"], seen.end["value"]) == ("error", "RunTimeError", "car called on non-pair ()")
    assert "\x1b" not in seen.end["traceback"]


@needs_kernels
def test_interrupt_of_another_language(scheme: ContextBench) -> None:
    scheme.run("(define kept 1)")
    scheme.order("(let loop () (loop))")
    scheme.interrupt(0.5)
    begun = fair_clock()
    assert scheme.read_to_end().end == {"kind": "interrupted"}
    assert fair_clock() - begun < 3
    assert scheme.run("kept").text == "1"


@needs_kernels
def test_streams_displays_and_results(python: ContextBench) -> None:
    code = (
        "import sys\nfrom IPython.display import HTML, display\n"
        "print('out'); h = display(HTML('<b>'), display_id='d')\n"
        "print('err', file=sys.stderr); h.update(HTML('<i>')); 5"
    )
    seen = python.run(code)
    assert (seen.stdout, seen.stderr, seen.text) == ("out\n", "err\n", "5")
    first, update, _ = seen.results
    assert (first["type"], first["data"]["text/html"], first["display_id"]) == ("display", "<b>", "d")
    assert (update["update"], update["data"]["text/html"], update["display_id"]) == (True, "<i>", "d")
    assert [kind for kind, _ in seen.order].index("result") > 0


@needs_kernels
def test_errors_input_and_completion(python: ContextBench) -> None:
    assert python.run("1/0").end["name"] == "ZeroDivisionError"
    assert python.run("1 +").end["name"] == "SyntaxError"
    assert python.run("input()").end["name"] == "EOFError"
    assert python.run("[input(), input('? ')]", stdin="a\nä\n".encode()).text == "['a', 'ä']"
    python.run("name_of_mine = 1")
    assert "Docstring" in python.inspect("len")["data"]["text/plain"]
    assert python.inspect("no_such_name") == {"found": False, "data": {}}
    python.complete("name_of")  # the first one loads what completes, for longer than a completion may take
    assert python.complete("1 + name_of") == {"matches": ["name_of_mine"], "start": 4, "end": 11}


@needs_kernels
def test_interrupt_and_reseed(python: ContextBench) -> None:
    python.order("import time\nkept = 1\nwhile True: time.sleep(1)")
    python.interrupt(0.5)
    assert python.read_to_end().end == {"kind": "interrupted"}
    assert python.run("kept").text == "1"
    one = python.run("import random; random.random()").text
    one = python.run("random.random()", seed="01" * 64).text
    assert python.run("random.random()", seed="01" * 64).text == one
    assert python.run("random.random()", seed="02" * 64).text != one
    python.run("random.seed(1); first = random.random(); random.seed(1)")
    assert python.run("random.random() == first", seed="03" * 64).text == "True"


@needs_kernels
@pytest.mark.parametrize(
    ("code", "status"), [("import os; os._exit(3)", 3), ("import os; os.kill(os.getpid(), 9)", -signal.SIGKILL)]
)
def test_the_death_of_the_kernel_is_the_death_of_the_context(bench: Bench, code: str, status: int) -> None:
    context = open_context(bench, "jupyter:python3")
    context.order(code)
    assert context.wait_death() == status


@pytest.mark.parametrize(
    ("code", "most"),
    [
        ("import sys\nfor _ in range(6000): print('o' * 90, flush=True); print('e', file=sys.stderr, flush=True)", 0),
        ("for _ in range(6000): display({'text/plain': 'x' * 2000}, raw=True)", 1000),
    ],
)
def test_a_flood_that_is_read_slowly_comes_to_its_end(python: ContextBench, code: str, most: int) -> None:
    python.order(code)
    time.sleep(3)  # a kernel that nobody listens to drops what it publishes, that it is idle among it
    seen = python.read_to_end()
    assert seen.end == {"kind": "ok"}
    assert len(seen.results) == most
    assert most or seen.stdout.startswith("o" * 90 + "\n")  # how much a kernel drops is the kernel's
    assert python.run("1").text == "1"
