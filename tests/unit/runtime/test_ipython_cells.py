"""Cells under IPython: what is not Python, and what only looks like it."""

from __future__ import annotations

from pathlib import Path

import pytest
from context_bench import ContextBench
from zygote_bench import Bench

pytestmark = pytest.mark.usefixtures("ipython")


def test_magics_and_shell(shared_context: ContextBench) -> None:
    run = shared_context.run
    assert run("%pwd").text == "'/tmp'"
    assert run("x = %pwd\nx").text == "'/tmp'"
    assert run("!echo $HOME; echo err >&2; exit 3").stdout == "/nonexistent\n"
    assert run("_exit_code").text == "3"
    assert run("word = 'python'\n!echo $word {word + 's'}").stdout == "python pythons\n"
    assert run("lines = !echo a; echo b; echo c >&2\nlines").text == "['a', 'b', 'c']"
    assert run("%%bash\necho from bash; echo err >&2").stdout == "from bash\n"
    assert "loop" in run("%timeit -n1 -r1 pass").stdout
    assert "pwd" in run("pwd?").stdout
    assert run("%time 6 * 7").text == "42"
    assert run("for i in range(2):\n    !echo $i").stdout == "0\n1\n"


def test_magic_without_its_percent_sign(fresh_context: ContextBench) -> None:
    run = fresh_context.run
    assert run("pwd").text == "'/tmp'"
    assert run("cd /").kind == "ok"
    assert run("import os; os.getcwd()").text == "'/'"
    assert run("ls -d /tmp").stdout.strip() == "/tmp/"
    assert run("ls = 5; l = 2").kind == "ok"
    assert run("ls -l").text == "3"


def test_output_of_a_command_keeps_its_place(shared_context: ContextBench) -> None:
    seen = shared_context.run("print('a', end='')\n!echo b\nprint('c')")
    assert seen.stdout == "ab\nc\n"


def test_interrupt_of_a_command(shared_context: ContextBench) -> None:
    for code in ("!sleep 60", "x = !sleep 60"):
        shared_context.order(code)
        shared_context.interrupt()
        assert shared_context.read_to_end().end == {"kind": "interrupted"}


def test_errors_of_magics(shared_context: ContextBench, tmp_path: Path) -> None:
    script = tmp_path / "fails.py"
    script.write_text("print(__name__)\n1 / 0\n")
    seen = shared_context.run(f"%run {script}")
    assert (seen.stdout, seen.stderr, seen.end["name"]) == ("__main__\n", "", "ZeroDivisionError")
    assert str(script) in seen.end["traceback"]
    for code, name in {
        "%no_such_magic": "UsageError",
        "%%time\n1 / 0": "ZeroDivisionError",
        "%%capture x\n1 / 0": "ZeroDivisionError",
        "%%no_such\nx": "UsageError",
        "%time (": "SyntaxError",
        "1 +\n%pwd": "SyntaxError",
    }.items():
        seen = shared_context.run(code)
        assert (seen.kind, seen.end["name"].replace("_IncompleteInput", "Syntax")) == ("error", name), code
        for ours in ("casemate", "/runtime/", "/IPython/core/", "\x1b["):
            assert ours not in seen.end["traceback"]
    assert shared_context.run("1 / 0").stderr == ""


def test_capture(shared_context: ContextBench) -> None:
    run = shared_context.run
    assert run("%%capture caught\nprint('out'); display(1)\n2").order == []
    assert run("caught.stdout, [o.data['text/plain'] for o in caught.outputs]").text == "('out\\n', ['1', '2'])"
    assert run("from IPython.utils.capture import capture_output\nwith capture_output() as c: print('x')").order == []


def test_it_is_ipython(fresh_context: ContextBench) -> None:
    run = fresh_context.run
    assert run("from IPython import get_ipython as got; got() is get_ipython() is not None").text == "True"
    assert run("__IPYTHON__").text == "True"
    assert run("from IPython.display import HTML, Image, display; HTML('<b>')").results[0]["data"]["text/html"] == "<b>"
    assert run("display(HTML('<i>'), metadata={'m': 1})").results[0]["metadata"] == {"m": 1}
    run("x = 1\ndef f(): pass")
    assert sorted(run("%who").stdout.split()) == ["HTML", "Image", "display", "f", "got", "x"]
    assert "%who" in run("%history -n").stdout
    assert run("%reset -f").kind == "ok"
    assert run("x").end["name"] == "NameError"
    assert run("y = 3\n%store y\n%store -r y\ny").text == "3"
    cleared = run("from IPython.display import clear_output; clear_output(); clear_output(wait=True)").results
    assert [result["data"] for result in cleared] == [
        {"application/vnd.casemate.clear+json": {"wait": wait}} for wait in (False, True)
    ]
    assert run("%config InteractiveShell.automagic = False").kind == "ok"
    assert run("pwd").end["name"] == "NameError"


def test_leaving_is_an_end_like_any_other(shared_context: ContextBench) -> None:
    assert shared_context.run("exit").kind == "ok"
    assert shared_context.run("quit()").end["name"] == "SystemExit"
    assert shared_context.run("%%capture\nexit(2)").kind in ("ok", "error")
    assert shared_context.run("1").text == "1"


def test_hooks_that_the_user_registers(fresh_context: ContextBench) -> None:
    run = fresh_context.run
    run("shell = get_ipython(); seen = []")
    run("shell.events.register('pre_run_cell', lambda info: seen.append(info.raw_cell))")
    run("shell.events.register('post_run_cell', lambda result: seen.append((result.result, result.success)))")
    assert run("6 * 7").text == "42"
    run("1 / 0")
    assert run("seen[2:6]").text == "['6 * 7', (42, True), '1 / 0', (None, False)]"
    run(
        "import ast\nclass Double(ast.NodeTransformer):\n    def visit_Constant(self, node):\n"
        "        return ast.Constant(node.value * 2) if type(node.value) is int else node"
    )
    run("shell.ast_transformers.append(Double())")
    assert run("21").text == "42"
    run("shell.ast_transformers.clear()")
    run("shell.input_transformers_post.append(lambda lines: [line.replace('plus', '+') for line in lines])")
    assert run("1 plus 2").text == "3"
    assert run("'a' 'plus' 'b'").text == "'a+b'"


def test_completion_knows_magics_and_attributes(shared_context: ContextBench) -> None:
    shared_context.run("class Thing: attribute_of_mine = 1\nthing = Thing()")
    assert "%timeit" in shared_context.complete("%timei")["matches"]
    found = shared_context.complete("thing.attr")
    assert found["matches"] in (["attribute_of_mine"], [".attribute_of_mine"], ["thing.attribute_of_mine"])
    assert shared_context.complete("x = {'zq_key': 1}; x['zq_")["matches"] == []


def test_script_is_in_no_ipython(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "x.py").write_text(
        "import builtins, sys\n"
        "print([hasattr(builtins, n) for n in ('display', 'get_ipython', '__IPYTHON__')], hasattr(sys, 'ps1'))\n"
        "import IPython; print(IPython.get_ipython(), 'IPython' in sys.modules)\n"
        "from IPython.core.interactiveshell import InteractiveShell as S; print(S.initialized())\n"
    )
    done = bench.run(["x.py"], tmp_path, bench.env())
    assert done.stdout.decode().split("\n") == ["[False, False, False] False", "None True", "False", ""]


def test_nothing_is_written(bench: Bench, tmp_path: Path) -> None:
    context = ContextBench(bench, cwd=str(tmp_path), HOME=str(tmp_path))
    for code in ("1", "%pwd", "!true", "x = 1\n%store x", "%history", "display(1)"):
        assert context.run(code).kind == "ok"
    assert list(tmp_path.iterdir()) == []
    assert context.run("import threading; threading.active_count()").text == "1"
    context.kill()


def test_inspection_says_what_a_name_is(shared_context: ContextBench) -> None:
    assert shared_context.run('def seen_by_all(a, b=2):\n    "What it does."\n    return a').end == {"kind": "ok"}
    found = shared_context.inspect("1 + seen_by_all(3")
    assert found["found"]
    assert "seen_by_all(a, b=2)" in found["data"]["text/plain"]
    assert "What it does." in found["data"]["text/plain"]
    assert "return a" in shared_context.inspect("seen_by_all", 4, detail=1)["data"]["text/plain"]
    assert shared_context.inspect("no_such_name") == {"found": False, "data": {}}
    assert shared_context.inspect("") == {"found": False, "data": {}}
    assert shared_context.run("seen_by_all.__doc__ = 'x' * 100_000").end == {"kind": "ok"}
    assert len(shared_context.inspect("seen_by_all")["data"]["text/plain"]) <= 40_000
