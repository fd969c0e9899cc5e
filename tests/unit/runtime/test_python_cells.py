"""What Python code sees in a context, and what of it comes out."""

from __future__ import annotations

import pytest
from context_bench import ContextBench
from zygote_bench import Bench

from casemate.runtime.inspecting import describe


def test_namespace_lives_on(shared_context: ContextBench) -> None:
    run = shared_context.run
    assert run("x = 6\ndef f(n): return n * x").text is None
    assert run("f(7)").text == "42"
    assert run("_").text == "42"
    assert run("__name__, __import__('sys').modules['__main__'].x").text == "('__main__', 6)"
    assert run("None").text is None
    assert run("").end == {"kind": "ok"}
    assert run("f(1);").text is None
    assert run("f(1) # a; comment").text == "6"
    assert run("(f(2)\n);  # quiet").text is None


def test_what_is_remembered_of_cells(fresh_context: ContextBench) -> None:
    run = fresh_context.run
    run("40")
    run("41")
    seen = run("42")
    assert seen.count == 3
    assert run("_, __, ___, _1, Out[2], In[1:3], _i, _i1").text == "(42, 41, 40, 40, 41, ['40', '41'], '42', '40')"
    run("_ = 'mine'")
    run("7")
    assert run("_").text == "'mine'"


def test_futures_stay_on(fresh_context: ContextBench) -> None:
    fresh_context.run("from __future__ import annotations")
    assert fresh_context.run("def h(x: Unknown): pass\nh.__annotations__").text == "{'x': 'Unknown'}"


def test_source_of_what_a_cell_defines(shared_context: ContextBench) -> None:
    shared_context.run("def shown(x):\n    return x  # this line")
    assert "this line" in (shared_context.run("import inspect; inspect.getsource(shown)").text or "")


def test_pickle_and_dataclasses_find_main(shared_context: ContextBench) -> None:
    code = "import pickle\nclass Thing: x = 1\npickle.loads(pickle.dumps(Thing())).x"
    assert shared_context.run(code).text == "1"


def test_streams(shared_context: ContextBench) -> None:
    seen = shared_context.run(
        "import os, subprocess, sys\n"
        "print('out'); print('err', file=sys.stderr)\n"
        "done = subprocess.run(['echo', 'from a child'])\n"
        "n = os.write(1, b'raw\\n'); print('no newline', end='')",
    )
    assert (seen.stdout, seen.stderr) == ("out\nfrom a child\nraw\nno newline", "err\n")


def test_streams_and_results_keep_their_order(shared_context: ContextBench) -> None:
    code = (
        "import sys\nfor n in range(50):\n"
        "    print('o', n, end='')\n    print('e', n, end='', file=sys.stderr)\n    display(n)\n'last'"
    )
    seen = shared_context.run(code)
    kinds = [kind for kind, _ in seen.order]
    assert kinds == ["stdout", "stderr", "result"] * 50 + ["result"]
    assert [what for kind, what in seen.order if kind == "stderr"] == [b"e %d" % n for n in range(50)]
    assert seen.text == "'last'"


def test_threads_write_and_show_side_by_side(shared_context: ContextBench) -> None:
    code = (
        "import sys, threading\n"
        "def work(n):\n"
        "    for i in range(100):\n"
        "        print('o', n); print('e', n, file=sys.stderr); display(n)\n"
        "threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]\n"
        "for t in threads: t.start()\n"
        "for t in threads: t.join()\n"
    )
    seen = shared_context.run(code)
    assert seen.kind == "ok"
    assert (len(seen.results), seen.stdout.count("o "), seen.stderr.count("e ")) == (400, 400, 400)


def test_large_output_arrives_complete(shared_context: ContextBench) -> None:
    seen = shared_context.run("for i in range(40000): print('line', i)\nprint('last', end='')")
    assert len(seen.stdout.splitlines()) == 40001
    assert seen.stdout.endswith("line 39999\nlast")


@pytest.mark.parametrize("size", [100, 300_000])
def test_results_of_any_size(shared_context: ContextBench, size: int) -> None:
    assert shared_context.run(f"'x' * {size}").text == repr("x" * size)


def test_top_level_await(shared_context: ContextBench) -> None:
    run = shared_context.run
    assert run("import asyncio\nawait asyncio.sleep(0, 'slept')").text == "'slept'"
    assert run("async def f():\n    await asyncio.sleep(0)\n    return [x async for x in g()]").kind == "ok"
    assert run("async def g():\n    yield 1\n    yield 2").kind == "ok"
    assert run("x = await f()\nasync for y in g(): x.append(y)\nx").text == "[1, 2, 1, 2]"
    assert run("asyncio.run(f())").text == "[1, 2]"
    assert (
        run("same = asyncio.Event()\nasync def setter(): same.set()\nt = asyncio.create_task(setter())").kind == "error"
    )
    assert run("await asyncio.sleep(0); t = asyncio.create_task(setter())").kind == "ok"
    assert run("await same.wait()").text == "True"


def test_stdin_is_empty_unless_given(shared_context: ContextBench) -> None:
    assert shared_context.run("input()").end["name"] == "EOFError"
    seen = shared_context.run("print(input('name? '), end='!'); input()", stdin=b"Ada\nsecond\nthird")
    assert (seen.stdout, seen.text) == ("name? Ada!", "'second'")
    assert shared_context.run("input()").end["name"] == "EOFError"
    seen = shared_context.run("import subprocess; subprocess.run(['cat']).returncode", stdin=b"for a child")
    assert (seen.stdout, seen.text) == ("for a child", "0")
    assert shared_context.run("import sys; sys.stdin.read()").text == "''"


def test_completion(shared_context: ContextBench) -> None:
    shared_context.run("word_of_mine = 'x'")
    found = shared_context.complete("print(word_of_m")
    assert (found["matches"], found["start"], found["end"]) == (["word_of_mine"], 6, 15)
    found = shared_context.complete("word_of_mine.isal", 17)
    assert [match.rpartition(".")[2] for match in found["matches"]] == ["isalnum", "isalpha"]
    assert len(shared_context.complete("")["matches"]) <= 1000
    assert shared_context.run("word_of_mine").count == shared_context.run("1").count - 1


def test_context_begins_where_it_was_told(bench: Bench) -> None:
    context = ContextBench(bench, cwd="/", WORD="of the environment")
    code = "import os, sys; os.getcwd(), os.environ['WORD'], sys.argv, sys.path[0]"
    assert context.run(code).text == "('/', 'of the environment', [''], '')"
    context.kill()


def test_no_such_language(bench: Bench) -> None:
    context = ContextBench(bench, language="python-but-not-quite")
    assert context.ready["event"] == "failed"
    assert isinstance(context.ready["reason"], str)
    assert context.close() == 0


def test_hanging_up_ends_the_context(bench: Bench) -> None:
    context = ContextBench(bench)
    context.run("import atexit, os; atexit.register(os._exit, 5)")
    assert context.close() == 5


def test_nothing_of_ours_is_in_the_way(fresh_context: ContextBench) -> None:
    """Descriptors: 0 to 2, the socket, and what is kept for mending, which children don't get."""
    code = "import os; sorted(int(fd) for fd in os.listdir('/proc/self/fd') if int(fd) < 64)"
    assert len(fresh_context.run(code).text.split(",")) <= 5  # type: ignore[union-attr]
    seen = fresh_context.run("import subprocess; n = subprocess.run(['ls', '/proc/self/fd'])")
    assert seen.stdout.split() == ["0", "1", "2", "3"]


def test_a_task_made_before_the_last_line_awaits_it(shared_context: ContextBench) -> None:
    shared_context.run("import asyncio")
    seen = shared_context.run("async def one(): return 1\ntask = asyncio.create_task(one())\nawait task")
    assert (seen.text, seen.end) == ("1", {"kind": "ok"})
    seen = shared_context.run("x = 1 / 0\nawait one()")
    assert seen.end["traceback"].count("File") == 1
    assert shared_context.run("y = 2\n'no loop'").text == "'no loop'"


def test_inspection_where_there_is_no_ipython() -> None:
    class Odd:
        p = property(lambda self: 1 / 0)

    def seen_by_all(a, b=2):
        """What it does."""
        return a

    names = {"seen": seen_by_all, "odd": Odd(), "number": 42}

    def text(code: str, cursor: int | None = None, detail: int = 0) -> str:
        return str(describe(names, code, len(code) if cursor is None else cursor, detail)["data"].get("text/plain"))

    for code, cursor in (("1 + seen(3", None), ("seen", 2)):
        assert "Signature: seen(a, b=2)" in text(code, cursor)
        assert "What it does." in text(code, cursor)
    assert "return a" in text("seen", detail=1)
    assert "Value:     42" in text("number")
    assert "Return" in text("''.upper; str.upper")
    for nothing in ("no_such_name", "", "1 + ", "odd.p", "seen.x"):
        assert describe(names, nothing, len(nothing), 0) == {"found": False, "data": {}}
