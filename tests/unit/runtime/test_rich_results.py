"""Results as MIME bundles: what each kind of object becomes, what is cut, and objects that mean harm."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from context_bench import ContextBench

TABLE = "application/vnd.casemate.table+json"


def only(results: list[dict[str, Any]]) -> dict[str, Any]:
    (result,) = results
    return result


def test_each_method_becomes_its_type(shared_context: ContextBench) -> None:
    code = (
        "class Rich:\n"
        "    def _repr_html_(self): return '<b>'\n"
        "    def _repr_markdown_(self): return '**'\n"
        "    def _repr_svg_(self): return '<svg/>'\n"
        "    def _repr_png_(self): return b'png'\n"
        "    def _repr_jpeg_(self): return b'jpeg', {'width': 3}\n"
        "    def _repr_pdf_(self): return b'pdf'\n"
        "    def _repr_latex_(self): return '$x$'\n"
        "    def _repr_json_(self): return {'a': [1, None]}\n"
        "    def _repr_javascript_(self): return 'f()'\n"
        "    def __repr__(self): return 'plain'\n"
        "Rich()"
    )
    result = only(shared_context.run(code).results)
    assert result["data"] == {
        "text/plain": "plain",
        "text/html": "<b>",
        "text/markdown": "**",
        "image/svg+xml": "<svg/>",
        "image/png": base64.b64encode(b"png").decode(),
        "image/jpeg": base64.b64encode(b"jpeg").decode(),
        "application/pdf": base64.b64encode(b"pdf").decode(),
        "text/latex": "$x$",
        "application/json": {"a": [1, None]},
        "application/javascript": "f()",
    }
    assert (result["type"], result["metadata"], result["cut"]) == ("result", {"image/jpeg": {"width": 3}}, {})


def test_bundle_of_ones_own(shared_context: ContextBench) -> None:
    code = (
        "class Own:\n"
        "    def _repr_mimebundle_(self, include, exclude):\n"
        "        return {'text/html': 'from the bundle', 'application/x-own+json': [1]}, {'text/html': {'k': 1}}\n"
        "    def _repr_html_(self): return 'not asked'\n"
        "    def _repr_latex_(self): return 'asked'\n"
        "    def __repr__(self): return 'own'\n"
        "Own()"
    )
    result = only(shared_context.run(code).results)
    assert result["data"] == {
        "text/html": "from the bundle",
        "application/x-own+json": [1],
        "text/latex": "asked",
        "text/plain": "own",
    }
    assert result["metadata"] == {"text/html": {"k": 1}}


def test_object_that_displays_itself(shared_context: ContextBench) -> None:
    code = "class Self:\n    def _ipython_display_(self): print('by itself')\nSelf()"
    seen = shared_context.run(code)
    assert (seen.stdout, seen.results) == ("by itself\n", [])


def test_displays_come_in_order_and_are_updated(shared_context: ContextBench) -> None:
    seen = shared_context.run("h = display('a', display_id=True)\ndisplay('b', 'c')\nh.update('d')\n'e'")
    first, *_, update, result = seen.results
    assert [one["data"]["text/plain"] for one in seen.results] == ["'a'", "'b'", "'c'", "'d'", "'e'"]
    assert [one["type"] for one in seen.results] == ["display"] * 4 + ["result"]
    assert first["display_id"] == update["display_id"]
    assert (first["update"], update["update"], "display_id" in result) == (False, True, False)
    seen = shared_context.run("display({'text/html': '<i>'}, raw=True, display_id='mine', metadata={'m': 1});")
    raw = only(seen.results)
    assert (raw["data"], raw["display_id"], raw["metadata"]) == ({"text/html": "<i>"}, "mine", {"m": 1})


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("return 1 / 0", "_repr_html_ of Bad failed:\nTraceback"),
        ("return 42", "_repr_html_ of Bad returned int, not text\n"),
        ("return ['<b>']", "_repr_html_ of Bad returned list, not text\n"),
        ("raise NotImplementedError", ""),
        ("return None", ""),
        ("return self._repr_html_()", "_repr_html_ of Bad failed:\nTraceback"),
    ],
)
def test_method_that_fails_spoils_nothing_else(shared_context: ContextBench, body: str, told: str) -> None:
    code = (
        f"class Bad:\n    def _repr_html_(self): {body}\n"
        "    def _repr_latex_(self): return 'good'\n    def __repr__(self): return 'bad'\nBad()"
    )
    seen = shared_context.run(code)
    assert seen.end == {"kind": "ok"}
    assert only(seen.results)["data"] == {"text/latex": "good", "text/plain": "bad"}
    assert seen.stderr.startswith(told)
    assert bool(seen.stderr) == bool(told)
    assert "casemate" not in seen.stderr
    assert "/runtime/" not in seen.stderr


def test_method_that_hangs_is_interrupted(shared_context: ContextBench) -> None:
    shared_context.order("import time\nclass Slow:\n    def _repr_html_(self): time.sleep(60)\nSlow()")
    shared_context.interrupt()
    assert shared_context.read_to_end().end == {"kind": "interrupted"}
    assert shared_context.run("1").text == "1"


def test_huge_results_are_left_out_by_type(shared_context: ContextBench) -> None:
    code = (
        "class Huge:\n    def _repr_html_(self): return 'h' * 50_000_000\n"
        "    def _repr_png_(self): return b'p' * 20_000_000\n    def __repr__(self): return 'huge'\nHuge()"
    )
    result = only(shared_context.run(code).results)
    assert result["data"] == {"text/plain": "huge"}
    assert result["cut"] == {"text/html": 50_000_000, "image/png": 20_000_000}


def test_limits_are_the_callers(shared_context: ContextBench) -> None:
    code = "display({'text/html': 'h' * 600, 'text/markdown': 'm' * 500, 'text/plain': 'p' * 100}, raw=True)"
    result = only(shared_context.run(code, limits={"result_bytes": 1000}).results)
    assert set(result["data"]) == {"text/markdown", "text/plain"}
    assert result["cut"] == {"text/html": 600}
    result = only(shared_context.run("print; 'x' * 10_000", limits={"text_bytes": 1000}).results)
    assert result["cut"] == {"text/plain": 10_002}
    assert 900 < len(result["data"]["text/plain"]) < 1100
    assert "characters left out" in result["data"]["text/plain"]


def test_text_in_other_scripts_is_cut_by_bytes(shared_context: ContextBench) -> None:
    result = only(shared_context.run("'\\u20ac' * 1000", limits={"text_bytes": 900}).results)
    assert result["cut"] == {"text/plain": 3002}
    assert len(result["data"]["text/plain"].encode()) < 1000


def test_too_many_results_are_counted(shared_context: ContextBench) -> None:
    seen = shared_context.run("for n in range(100_000): display(n)", limits={"results": 10})
    assert len(seen.results) == 10
    assert seen.message["left_out"] == 99_990
    assert "left_out" not in shared_context.run("1").message


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("{'n': float('nan'), 'i': [float('inf')]}", {"n": None, "i": [None]}),
        ("{1: 2}", {"1": 2}),
        ("None", None),
    ],
)
def test_json_that_is_none(shared_context: ContextBench, value: str, shown: object) -> None:
    code = f"display({{'application/json': {value}, 'text/plain': 'x'}}, raw=True)"
    assert only(shared_context.run(code).results)["data"].get("application/json") == shown


@pytest.mark.parametrize(
    "value",
    [
        "object()",
        "{1, 2}",
        "b'\\xff'.decode('latin-1').join",
        "(lambda d: d.__setitem__('d', d) or d)({})",
        "{(1,): 2}",
    ],
)
def test_json_that_is_not_json(shared_context: ContextBench, value: str) -> None:
    code = f"display({{'application/json': {value}, 'text/plain': 'x'}}, raw=True)"
    seen = shared_context.run(code)
    assert (seen.kind, only(seen.results)["data"]) == ("ok", {"text/plain": "x"})


def test_deep_json(shared_context: ContextBench) -> None:
    code = "x = []\nfor _ in range(100_000): x = [x]\ndisplay({'application/json': x, 'text/plain': 'x'}, raw=True)"
    assert only(shared_context.run(code).results)["data"] == {"text/plain": "x"}


@pytest.mark.parametrize("name", ["3", "''", "'x' * 1000", "None", "b'text/html'"])
def test_names_that_are_no_mime_types(shared_context: ContextBench, name: str) -> None:
    seen = shared_context.run(f"display({{{name}: 'y', 'text/plain': 'x'}}, raw=True)")
    assert (seen.kind, only(seen.results)["data"]) == ("ok", {"text/plain": "x"})


def test_lone_surrogates(shared_context: ContextBench) -> None:
    seen = shared_context.run("display({'text/html': '\\ud800'}, raw=True)")
    assert only(seen.results)["data"] == {"text/html": "\ud800"}


def test_object_that_has_every_attribute(shared_context: ContextBench) -> None:
    code = (
        "class Any:\n    def __getattr__(self, name): return lambda *a, **k: 'whatever'\n"
        "    def __repr__(self): return 'any'\nAny()"
    )
    assert only(shared_context.run(code).results)["data"] == {"text/plain": "any"}
    code = "class Bad:\n    def __getattr__(self, name): raise OSError(name)\n    def __repr__(self): return 'r'\nBad()"
    assert only(shared_context.run(code).results)["data"] == {"text/plain": "r"}


def test_a_class_is_not_asked(shared_context: ContextBench) -> None:
    code = "class Rich:\n    def _repr_html_(self): return '<b>'\nRich"
    assert set(only(shared_context.run(code).results)["data"]) == {"text/plain"}


def test_interrupt_in_a_display(shared_context: ContextBench) -> None:
    shared_context.order("while True: display('x' * 100_000)", limits={"results": 1 << 40})
    shared_context.interrupt()
    assert shared_context.read_to_end().end == {"kind": "interrupted"}
    assert shared_context.run("2").text == "2"


@pytest.mark.usefixtures("pandas")
class TestTables:
    def test_wide_frames_are_as_in_a_notebook(self, shared_context: ContextBench) -> None:
        """pandas decides by IPython's kernel when it is imported; here that was before there was any."""
        assert shared_context.run("import pandas as pd; pd.get_option('display.max_columns')").text == "20"
        assert shared_context.run("pd.reset_option('display.'); pd.get_option('display.max_columns')").text == "20"
        wide = shared_context.run("pd.DataFrame([range(50)])")
        assert only(wide.results)["data"]["text/html"].count("<td>") == 21  # one of them …

    def test_reading_it_warns_nobody(self, shared_context: ContextBench) -> None:
        code = (
            "import pandas as pd, warnings\n"
            "class Warns(list):\n"
            "    def __str__(self): warnings.warn('read'); return 'x'\n"
            "    __repr__ = list.__repr__\n"
            "pd.DataFrame({'a': [Warns()]})"
        )
        seen = shared_context.run(code)
        assert seen.stderr == ""
        assert only(seen.results)["data"][TABLE]["rows"] == [["x"]]

    def test_types_and_values(self, shared_context: ContextBench) -> None:
        code = (
            "import pandas as pd, numpy as np, datetime\n"
            "pd.DataFrame({\n"
            "  'i': [1, 2], 'f': [0.5, np.nan], 'inf': [np.inf, -1.0], 'b': [True, False], 't': ['x', None],\n"
            "  'd': pd.to_datetime(['2020-01-02T03:04:05', None]),\n"
            "  'z': pd.to_datetime(['2020-01-02', None], utc=True),\n"
            "  'td': pd.to_timedelta(['1 days', None]), 'c': pd.Categorical(['a', None]),\n"
            "  'o': [{'k': 1}, object], 'n': pd.array([1, None], dtype='Int64'),\n"
            "  'day': [datetime.date(2020, 1, 2), None],\n"
            "})"
        )
        result = only(shared_context.run(code).results)
        assert {"text/plain", "text/html", TABLE} == set(result["data"])
        table = result["data"][TABLE]
        assert table["shape"] == [2, 12]
        assert {one["name"]: one["type"] for one in table["columns"]} == {
            "i": "int",
            "f": "float",
            "inf": "float",
            "b": "bool",
            "t": "text",
            "d": "datetime",
            "z": "datetime",
            "td": "duration",
            "c": "category",
            "o": "other",
            "n": "int",
            "day": "datetime",
        }
        assert [row[7:] for row in table["rows"]] == [
            ["P1DT0H0M0S", "a", "{'k': 1}", 1, "2020-01-02"],
            [None, None, "<class 'object'>", None, None],
        ]
        assert [row[:7] for row in table["rows"]] == [
            [1, 0.5, None, True, "x", "2020-01-02T03:04:05", "2020-01-02T00:00:00+00:00"],
            [2, None, -1.0, False, None, None, None],
        ]
        assert "index" not in table

    def test_cut_with_the_true_shape(self, shared_context: ContextBench) -> None:
        code = "import pandas as pd, numpy as np\npd.DataFrame(np.zeros((5000, 300)))"
        table = only(shared_context.run(code).results)["data"][TABLE]
        assert (table["shape"], len(table["rows"]), len(table["columns"])) == ([5000, 300], 1000, 100)
        seen = shared_context.run(code, limits={"table_rows": 3, "table_columns": 2})
        table = only(seen.results)["data"][TABLE]
        assert table["rows"] == [[0.0, 0.0]] * 3

    def test_index_and_series(self, shared_context: ContextBench) -> None:
        code = "import pandas as pd\npd.DataFrame({'x': [1.0, 2.0, 4.0]}).describe()"
        table = only(shared_context.run(code).results)["data"][TABLE]
        assert table["index"] == ["count", "mean", "std", "min", "25%", "50%", "75%", "max"]
        assert table["rows"][0] == [3.0]
        table = only(shared_context.run("pd.Series([1, 2], name='s')").results)["data"][TABLE]
        assert table == {"columns": [{"name": "s", "type": "int"}], "rows": [[1], [2]], "shape": [2, 1]}
        code = "pd.DataFrame({('a', 1): [1]}, index=pd.MultiIndex.from_tuples([('x', 2)]))"
        table = only(shared_context.run(code).results)["data"][TABLE]
        assert (table["columns"][0]["name"], table["index"]) == ("('a', '1')", [["x", 2]])

    @pytest.mark.parametrize("frame", ["pd.DataFrame()", "pd.DataFrame(index=[1, 2])", "pd.Series([], dtype=float)"])
    def test_empty(self, shared_context: ContextBench, frame: str) -> None:
        seen = shared_context.run(f"import pandas as pd\n{frame}")
        assert TABLE in only(seen.results)["data"]
        assert seen.stderr == ""

    def test_long_texts_in_cells(self, shared_context: ContextBench) -> None:
        seen = shared_context.run("import pandas as pd\npd.DataFrame({'x': ['y' * 1_000_000] * 50, 'y': ['z'] * 50})")
        table = only(seen.results)["data"][TABLE]
        assert len(table["rows"][0][0]) == 10_001


@pytest.mark.usefixtures("ipython")
def test_printers_that_the_user_registers(fresh_context: ContextBench) -> None:
    run = fresh_context.run
    run("formatters = get_ipython().display_formatter.formatters")
    run("formatters['text/html'].for_type(int, lambda n: '<b>%d</b>' % n)")
    assert only(run("3").results)["data"] == {"text/plain": "3", "text/html": "<b>3</b>"}
    run("formatters['text/plain'].for_type(int, lambda n, p, cycle: p.text('n=%d' % n))")
    assert only(run("3").results)["data"]["text/plain"] == "n=3"
    assert run("%precision 2").kind == "ok"
    assert run("3.14159").text == "3.14"
