"""What Python code sees in a context, and what of it comes out."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from context_bench import ContextBench
from zygote_bench import Bench


@pytest.fixture(scope="module")
def context(bench: Bench) -> Iterator[ContextBench]:
    context = ContextBench(bench)
    assert context.ready["event"] == "ready"
    yield context
    context.kill()


def test_namespace_lives_on(context: ContextBench) -> None:
    assert context.run("x = 6\ndef f(n): return n * x").text is None
    assert context.run("f(7)").text == "42"
    assert context.run("_").text == "42"
    assert context.run("__name__, __import__('sys').modules['__main__'].x").text == "('__main__', 6)"
    assert context.run("None").text is None
    assert context.run("").end == {"kind": "ok"}


def test_streams_and_results_keep_their_order(context: ContextBench) -> None:
    code = "import sys\nfor n in range(50):\n    print('o', n, end='')\n    print('e', n, file=sys.stderr)\n'last'"
    seen = context.run(code)
    expected = [pair for n in range(50) for pair in (("stdout", b"o %d" % n), ("stderr", b"e %d\n" % n))]
    assert seen.order[:-1] == expected
    assert seen.text == "'last'"


def test_error_is_the_users_own(context: ContextBench) -> None:
    seen = context.run("def g():\n    return {}['key']\n\ng()")
    assert (seen.kind, seen.end["name"], seen.end["value"]) == ("error", "KeyError", "'key'")
    assert seen.end["traceback"].startswith('Traceback (most recent call last):\n  File "<cell ')
    assert "runtime/" not in seen.end["traceback"]


def test_interrupt_keeps_the_state(context: ContextBench) -> None:
    context.order("kept = 1\nimport time\ntime.sleep(60)")
    context.interrupt()
    assert context.read_to_end().end == {"kind": "interrupted"}
    assert context.run("kept").text == "1"


@pytest.mark.parametrize("size", [100, 300_000])
def test_results_of_any_size(context: ContextBench, size: int) -> None:
    assert context.run(f"'x' * {size}").text == repr("x" * size)
