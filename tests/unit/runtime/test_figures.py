"""Figures in a context: their pictures, and charts beside them. In the Python of these tests, which has matplotlib."""

from __future__ import annotations

import base64
import os
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from context_bench import ContextBench
from zygote_bench import Bench

CHART = "application/vnd.casemate.chart+json"
PNG = b"\x89PNG\r\n\x1a\n"
_MORE = [path for path in os.environ.get("CASEMATE_TEST_PYTHONS", "").split(":") if path]


@pytest.fixture(scope="module", params=[sys.executable, *_MORE])
def bench(request: pytest.FixtureRequest, subreaper: None) -> Iterator[Bench]:
    bench = Bench(request.param)
    yield bench
    bench.close()


def only(results: list[dict[str, Any]]) -> dict[str, Any]:
    (result,) = results
    return result


@pytest.mark.usefixtures("matplotlib")
class TestFigures:
    def test_open_figures_are_shown_and_closed(self, shared_context: ContextBench) -> None:
        code = "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.figure(); plt.plot([3])\nprint('drawn')"
        seen = shared_context.run(code)
        assert [kind for kind, _ in seen.order] == ["stdout", "result", "result"]
        assert all(base64.b64decode(one["data"]["image/png"]).startswith(PNG) for one in seen.results)
        assert [one["type"] for one in seen.results] == ["display", "display"]
        assert shared_context.run("plt.get_fignums()").text == "[]"

    def test_show_shows_at_once(self, shared_context: ContextBench) -> None:
        seen = shared_context.run("import matplotlib.pyplot as plt\nplt.plot([1]); plt.show(); print('after')")
        assert [kind for kind, _ in seen.order] == ["result", "stdout"]
        assert seen.stderr == ""

    def test_figure_as_the_result_is_not_shown_twice(self, shared_context: ContextBench) -> None:
        seen = shared_context.run("import matplotlib.pyplot as plt\nfig, ax = plt.subplots(); ax.plot([1]); fig")
        assert only(seen.results)["type"] == "result"
        assert "image/png" in only(seen.results)["data"]

    def test_shown_after_an_error_too(self, shared_context: ContextBench) -> None:
        seen = shared_context.run("import matplotlib.pyplot as plt\nplt.plot([1]); 1 / 0")
        assert (len(seen.results), seen.end["name"]) == (1, "ZeroDivisionError")

    def test_figure_that_can_not_be_drawn(self, shared_context: ContextBench) -> None:
        code = "import matplotlib.pyplot as plt\nplt.plot([1]); plt.title('$\\\\nosuch$'); plt.figure(); plt.plot([1]);"
        seen = shared_context.run(code)
        assert ["image/png" in one["data"] for one in seen.results] == [False, True]
        assert "the figure of Figure failed" in seen.stderr
        assert shared_context.run("plt.get_fignums()").text == "[]"

    def test_picture(self, shared_context: ContextBench) -> None:
        seen = shared_context.run("from PIL import Image\nImage.new('RGB', (2, 2))")
        assert base64.b64decode(only(seen.results)["data"]["image/png"]).startswith(PNG)


def has(context: ContextBench, module: str) -> None:
    if context.run(f"import importlib.util; importlib.util.find_spec('{module}') is not None").text != "True":
        pytest.skip(f"this Python has no {module}; CASEMATE_TEST_PYTHONS may name one that has")


class TestFiguresThatAreData:
    def test_plotlys(self, shared_context: ContextBench) -> None:
        has(shared_context, "plotly")
        code = "import plotly.graph_objects as go; figure = go.Figure(go.Bar(x=['a'], y=[1])); figure"
        result = only(shared_context.run(code).results)
        assert result["data"]["application/vnd.plotly.v1+json"]["data"] == [{"type": "bar", "x": ["a"], "y": [1]}]
        (shown,) = shared_context.run("figure.show()").results
        assert shown["type"] == "display"
        assert "application/vnd.plotly.v1+json" in shown["data"]

    def test_altairs(self, shared_context: ContextBench) -> None:
        has(shared_context, "altair")
        code = "import altair; altair.Chart({'values': [{'a': 1}]}).mark_bar().encode(x='a:Q')"
        data = only(shared_context.run(code).results)["data"]
        (specification,) = (value for mime, value in data.items() if "vegalite" in mime)
        assert specification["mark"] == {"type": "bar"}

    def test_a_chart_without_a_mark_is_told(self, shared_context: ContextBench) -> None:
        has(shared_context, "altair")
        seen = shared_context.run("import altair; altair.Chart({'values': []}, mark=5)")
        assert seen.end["kind"] == "ok"


@pytest.mark.usefixtures("matplotlib")
class TestCharts:
    def test_a_chart_stands_beside_the_picture(self, shared_context: ContextBench) -> None:
        code = "import matplotlib.pyplot as plt\nplt.bar(['a'], [1]); plt.show(); plt.imshow([[1]]);"
        bars, image = shared_context.run(code).results
        assert bars["data"][CHART]["series"] == [{"label": None, "x": ["a"], "y": [1]}]
        assert {"image/png", "text/plain"} == set(image["data"])

    def test_boxes_without_pyplot(self, fresh_context: ContextBench) -> None:
        code = "from matplotlib.figure import Figure\nf = Figure(); f.subplots().boxplot([[1, 2, 3]]); f"
        chart = only(fresh_context.run(code).results)["data"][CHART]
        assert (chart["type"], chart["series"][0]["median"]) == ("box", 2)

    def test_too_large_a_one_is_said_to_be_left_out(self, shared_context: ContextBench) -> None:
        code = "import matplotlib.pyplot as plt\nplt.plot(range(100_001), ',');"
        result = only(shared_context.run(code).results)
        assert "image/png" in result["data"]
        assert result["cut"] == {CHART: 0}

    def test_what_a_box_plot_can_not_draw_is_the_users_error(self, shared_context: ContextBench) -> None:
        seen = shared_context.run("import matplotlib.pyplot as plt\nplt.gca().bxp([{}])")
        assert seen.end["name"] == "KeyError"
        assert "/runtime/" not in seen.end["traceback"]

    @pytest.mark.usefixtures("ipython")
    def test_formatters_of_ipython_take_no_chart_away(self, fresh_context: ContextBench) -> None:
        fresh_context.run("%matplotlib inline\nfrom IPython.core.pylabtools import select_figure_formats")
        fresh_context.run("select_figure_formats(get_ipython(), {'png', 'svg'})")
        result = only(fresh_context.run("import matplotlib.pyplot as plt\nplt.plot([1, 2]);").results)
        assert {"image/png", "image/svg+xml", CHART} <= set(result["data"])

    def test_nothing_is_imported_before_a_figure_is_shown(self, fresh_context: ContextBench) -> None:
        ours = (
            "sorted(name for name in __import__('sys').modules if name.endswith(('runtime.charts', 'runtime.scales')))"
        )
        assert fresh_context.run(ours).text == "[]"
        assert fresh_context.run("import matplotlib.pyplot as plt\n" + ours).text == "[]"
