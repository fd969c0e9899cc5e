"""Errors as ends: name, value, and a traceback that is the user's own."""

from __future__ import annotations

import pytest
from context_bench import ContextBench


@pytest.mark.parametrize(
    ("code", "name", "value"),
    [
        ("def g():\n    return {}['key']\n\ng()", "KeyError", "'key'"),
        ("1 +", "SyntaxError", "invalid syntax (<cell N>, line 1)"),
        ("raise SystemExit(3)", "SystemExit", "3"),
        ("exit(4)", "SystemExit", "4"),
        ("import sys; sys.exit('bye')", "SystemExit", "bye"),
        ("raise BaseException('x')", "BaseException", "x"),
        (
            "class Bad(Exception):\n    def __str__(self): raise ValueError\nraise Bad",
            "Bad",
            "<unprintable: ValueError>\n",
        ),
        ("class Odd(Exception):\n    def __str__(self): return 3\nraise Odd", "Odd", "<unprintable: TypeError>\n"),
        ("class Ugly:\n    def __repr__(self): return 1 / 0\nUgly()", "ZeroDivisionError", "division by zero"),
        ("def f(): f()\nf()", "RecursionError", None),
        ("import asyncio\nasync def f(): raise LookupError('in a task')\nawait f()", "LookupError", "in a task"),
        ("import os\nos.stat('/nowhere')", "FileNotFoundError", "[Errno 2] No such file or directory: '/nowhere'"),
        ("import random\nrandom.seed([])", "TypeError", None),
    ],
)
def test_error(shared_context: ContextBench, code: str, name: str, value: str | None) -> None:
    seen = shared_context.run(code)
    assert (seen.kind, seen.end["name"]) == ("error", name)
    if value is not None:
        assert seen.end["value"] == value.replace("cell N", f"cell {seen.count}")
    trace = seen.end["traceback"]
    assert f'File "<cell {seen.count}>"' in trace
    for ours in ("casemate", "/runtime/", "asyncio/", "\x1b["):
        assert ours not in trace


def test_traceback_shows_the_lines(shared_context: ContextBench) -> None:
    seen = shared_context.run("def g():\n    return {}['key']\n\ng()")
    lines = seen.end["traceback"].splitlines()
    assert lines[:3] == [
        "Traceback (most recent call last):",
        f'  File "<cell {seen.count}>", line 4, in <module>',
        "    g()",
    ]
    assert "    return {}['key']" in lines
    assert lines[-1] == "KeyError: 'key'"


def test_syntax_error_has_a_caret_and_no_frames(shared_context: ContextBench) -> None:
    seen = shared_context.run("x = 1\nif x\n    print(x)\n")
    lines = seen.end["traceback"].splitlines()
    assert lines[:2] == [f'  File "<cell {seen.count}>", line 2', "    if x"]
    assert lines[2].strip() == "^"
    assert lines[3].startswith("SyntaxError: ")


def test_chained_errors(shared_context: ContextBench) -> None:
    code = "try:\n    1 / 0\nexcept ZeroDivisionError as e:\n    raise ValueError('x') from e"
    trace = shared_context.run(code).end["traceback"]
    assert "direct cause" in trace
    assert trace.index("ZeroDivisionError: ") < trace.index("ValueError: x")


def test_exception_group(shared_context: ContextBench) -> None:
    if shared_context.run("import sys; sys.version_info >= (3, 11)").text != "True":
        pytest.skip("no exception groups")
    seen = shared_context.run(
        "e = ValueError('one'); e.add_note('mind this')\nraise ExceptionGroup('many', [e, TypeError('two')])"
    )
    assert seen.end["name"] == "ExceptionGroup"
    for part in ("ValueError: one", "mind this", "TypeError: two"):
        assert part in seen.end["traceback"]


def test_error_after_output_and_results(shared_context: ContextBench) -> None:
    seen = shared_context.run("print('first'); display('second'); 1 / 0")
    assert [kind for kind, _ in seen.order] == ["stdout", "result"]
    assert seen.end["name"] == "ZeroDivisionError"


@pytest.mark.parametrize(
    "code",
    [
        "raise ValueError('\\u20ac' * 10_000_000)",
        "class E(Exception):\n    def __str__(self): return 'x' * 50_000_000\nraise E",
        "raise type('N' * 1_000_000, (Exception,), {})('x')",
        "x = ('y' * 3_000_000)\nraise KeyError(x)",
        "e = None\nfor n in range(2000):\n    new = ValueError('z' * 1000); new.__context__ = e; e = new\nraise e",
    ],
)
def test_ends_are_bounded(shared_context: ContextBench, code: str) -> None:
    seen = shared_context.run(code)
    assert seen.kind == "error"
    assert len(seen.end["name"]) <= 300
    assert len(seen.end["value"]) <= 9_000
    assert len(seen.end["traceback"]) <= 33_000
    assert shared_context.run("1").text == "1"


def test_bounds_are_the_callers(shared_context: ContextBench) -> None:
    seen = shared_context.run(
        "raise ValueError('x' * 5000)", limits={"value_bytes": 1000, "no_such_limit": 1, "results": "x"}
    )
    assert "characters left out" in seen.end["value"]
    assert len(seen.end["value"]) < 1100
    seen = shared_context.run(
        "raise ValueError('x' * 5_000_000)", limits={"value_bytes": 1 << 40, "traceback_bytes": 1 << 40}
    )
    assert len(seen.end["value"]) <= 65_000


def test_str_that_hangs_is_given_up(shared_context: ContextBench) -> None:
    shared_context.order("import time\nclass Slow(Exception):\n    def __str__(self): time.sleep(60)\nraise Slow")
    shared_context.interrupt()
    assert shared_context.read_to_end().end == {"kind": "interrupted"}


def test_metaclass_that_lies_about_its_name(shared_context: ContextBench) -> None:
    code = (
        "class Meta(type):\n    @property\n    def __name__(cls): return 1 / 0\n"
        "class E(Exception, metaclass=Meta): pass\nraise E('x')"
    )
    seen = shared_context.run(code)
    assert (seen.end["name"], seen.end["value"]) == ("E", "x")


def test_invalid_utf8_code(shared_context: ContextBench) -> None:
    seen = shared_context.run(b"x = '\xff'")
    assert (seen.kind, seen.end["name"]) == ("error", "SyntaxError")
    assert "position 5" in seen.end["value"]
    seen = shared_context.run(b"x = '\xff'", stdin=b"x")
    assert seen.end["name"] == "SyntaxError"
    assert shared_context.run("input()").end["name"] == "EOFError"


def test_nul_in_the_code(shared_context: ContextBench) -> None:
    assert shared_context.run("x = 1\0").kind == "error"
