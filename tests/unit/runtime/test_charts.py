"""Figures as data: what each kind becomes, what has no chart, and artists that lie."""

from __future__ import annotations

import datetime
import io
import json
from collections.abc import Iterator
from typing import Any

import pytest

np = pytest.importorskip("numpy")
matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("agg")
from matplotlib import pyplot as plt  # noqa: E402
from matplotlib.lines import Line2D  # noqa: E402

from casemate.runtime import charts, plots, results  # noqa: E402
from casemate.runtime.engines import Limits  # noqa: E402
from casemate.sdk import Bars, Box, Points, Slice  # noqa: E402
from casemate.sdk.charts import chart_of  # noqa: E402

plots.remember_boxes(matplotlib.axes)


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    plt.close("all")


def told(*, drawn: bool = True) -> Any:
    """What becomes of the current figure; as JSON has it, and as a client reads it."""
    figure = plt.gcf()
    if drawn:
        figure.savefig(io.BytesIO())
    chart = charts.as_chart(figure)
    assert json.loads(json.dumps(chart, allow_nan=False)) == chart
    assert (chart is None) == (chart_of(chart) is None)
    return chart


def test_lines() -> None:
    plt.plot([1, 2, 3], [4, float("nan"), 6.5], label="a")
    plt.plot([1, 2], [1, 2], "--")
    plt.title("Title")
    plt.xlabel("X")
    plt.yscale("log")
    chart = told()
    assert (chart["type"], chart["title"]) == ("line", "Title")
    assert (chart["x"]["label"], chart["x"]["scale"], chart["y"]["label"], chart["y"]["scale"]) == (
        "X",
        "linear",
        None,
        "log",
    )
    assert chart["series"] == [
        {"label": "a", "x": [1, 2, 3], "y": [4, None, 6.5]},
        {"label": None, "x": [1, 2], "y": [1, 2]},
    ]
    read = chart_of(chart)
    assert read is not None
    assert read.series[0] == Points("a", (1, 2, 3), (4, None, 6.5))


def test_dates_and_categories() -> None:
    plt.plot([datetime.date(2024, 2, 29), datetime.date(2024, 3, 1)], [1, 2])
    chart = told()
    assert (chart["x"]["scale"], chart["series"][0]["x"]) == ("date", ["2024-02-29", "2024-03-01"])
    assert chart["x"]["ticks"][0]["at"].startswith("2024-02-29")
    plt.close()
    plt.scatter(["low", "high"], [1, 2])
    chart = told()
    assert (chart["type"], chart["x"]["scale"], chart["series"][0]["x"]) == ("scatter", "category", ["low", "high"])


def test_clouds() -> None:
    plt.scatter([1, 2], [3, 4], c=[0, 1], label="points")
    plt.colorbar()
    plt.plot([5], [6], "o")
    chart = told()
    assert chart["type"] == "scatter", "a colour bar is no second coordinate system"
    assert sorted(chart["series"], key=lambda one: one["x"][0]) == [
        {"label": "points", "x": [1, 2], "y": [3, 4]},
        {"label": None, "x": [5], "y": [6]},
    ]


def test_bars() -> None:
    plt.bar(["a", "b"], [1, 2], yerr=[0.1, 0.2], label="one")
    plt.bar(["a", "b"], [3, 4], bottom=[1, 2], label="two")
    chart = told()
    assert chart["series"] == [
        {"label": "one", "x": ["a", "b"], "y": [1, 2]},
        {"label": "two", "x": ["a", "b"], "y": [3, 4], "base": [1, 2]},
    ]
    plt.close()
    plt.barh(["a", "b"], [1, 2])
    chart = told()
    assert (chart["horizontal"], chart["x"]["scale"], chart["y"]["scale"]) == (True, "category", "linear")
    assert chart["series"] == [{"label": None, "x": ["a", "b"], "y": [1, 2]}]
    plt.close()
    plt.hist([1, 2, 2, 4], bins=[1, 2, 3, 4])
    read = chart_of(told())
    assert read is not None
    assert read.series == (Bars(None, (1.5, 2.5, 3.5), (1, 2, 1), None, (1, 1, 1)),)


def test_bars_beside_each_other_stand_at_one_name() -> None:
    plt.bar([-0.2, 0.8], [1, 2], width=0.4, label="u")
    plt.bar([0.2, 1.2], [3, 4], width=0.4, label="v")
    plt.xticks([0, 1], ["k", "l"])
    assert [one["x"] for one in told()["series"]] == [["k", "l"], ["k", "l"]]


def test_pies() -> None:
    plt.pie([1, 3], labels=["m", "n"], autopct="%d")
    read = chart_of(told())
    assert read is not None
    assert read.series == (Slice("m", 0.25), Slice("n", 0.75))


@pytest.mark.parametrize(
    "how", [{}, {"patch_artist": True}, {"notch": True}, {"showmeans": True}, {"showmeans": True, "meanline": True}]
)
def test_boxes(how: dict[str, bool]) -> None:
    plt.boxplot([[1, 2, 3, 9, 30], [2, 3, 4, 5, 9]], **how)
    plt.xticks([1, 2], ["a", "b"])
    read = chart_of(told())
    assert read is not None
    assert read.series == (Box("a", 1, 1, 2, 3, 9, 9, (30,)), Box("b", 2, 2, 3, 4, 5, 5, (9,)))
    assert not read.horizontal


def test_boxes_that_lie() -> None:
    new = tuple(map(int, matplotlib.__version__.split(".")[:2])) >= (3, 10)
    plt.boxplot([[1, 2, 3, 9, 30]], **({"orientation": "horizontal"} if new else {"vert": False}))
    chart = told()
    assert chart["horizontal"]
    assert chart["series"][0]["median"] == 3
    plt.gca().clear()
    assert told() is None, "what was removed is not told"


def test_several() -> None:
    figure, (left, right, third) = plt.subplots(1, 3)
    left.plot([1, 2])
    left.scatter([1], [2])
    right.imshow([[1]])
    third.twinx().plot([3, 4])
    figure.suptitle("All")
    chart = told()
    assert (chart["type"], chart["title"]) == ("composite", "All")
    assert [one["type"] for one in chart["charts"]] == ["line", "scatter", "line"]


@pytest.mark.parametrize(
    "draw",
    [
        "plt.figure()",
        "plt.subplots()",
        "plt.imshow([[1]])",
        "plt.fill_between([1, 2], [1, 2])",
        "plt.contour([[1, 2], [3, 4]])",
        "plt.contourf([[1, 2], [3, 4]])",
        "plt.hexbin([1, 2], [3, 4])",
        "plt.stackplot([1, 2], [1, 2])",
        "plt.quiver([1], [1])",
        "plt.axes(projection='polar').plot([1, 2])",
        "plt.axes(projection='3d').plot([1, 2], [1, 2], [1, 2])",
        "plt.plot([1, 2]); plt.axvspan(0, 1)",
        "plt.axhline(3)",
        "plt.step([1, 2], [3, 4])",
        "plt.hist([1, 2, 2], histtype='step')",
        "plt.plot([])",
        "plt.scatter([], [])",
        "plt.pie([1, 2]); plt.pie([1, 3], radius=0.5)",
        "plt.bar([1, 2], [3, 4]); plt.barh([1], [2])",
        "plt.plot([1, 2], visible=False)",
    ],
)
def test_what_has_no_chart(draw: str) -> None:
    exec(draw, {"plt": plt})
    assert told() is None


def test_lines_that_only_mark_a_place_are_left_out() -> None:
    plt.plot([1, 2], [3, 4])
    plt.axhline(3.5)
    assert [one["y"] for one in told()["series"]] == [[3, 4]]


def test_too_many_points_are_said_to_be_left_out() -> None:
    plt.plot(range(60_000))
    assert len(told()["series"][0]["x"]) == 60_000
    plt.scatter(range(60_000), range(60_000))
    assert charts.as_chart(plt.gcf()) == results.LeftOut(0)
    body = {"type": "display", "data": {plots.CHART: results.LeftOut(0), "text/plain": "F"}}
    sent = json.loads(results.encode(body, Limits()))
    assert (sent["data"], sent["cut"]) == ({"text/plain": "F"}, {plots.CHART: 0})


def test_a_chart_does_not_drive_out_its_picture() -> None:
    body = {"type": "display", "data": {"image/png": b"p" * 3000, plots.CHART: {"x": ["c" * 1000]}}}
    sent = json.loads(results.encode(body, Limits(result_bytes=4500)))
    assert set(sent["data"]) == {"image/png"}
    assert sent["cut"] == {plots.CHART: 1011}


def test_what_is_missing() -> None:
    plt.plot([1, None, 3])
    plt.plot(np.ma.array([1, 2, 3], mask=[0, 1, 0]))
    plt.plot([1, float("inf"), 3])
    assert [one["y"] for one in told()["series"]] == [[1, None, 3]] * 3
    plt.close()
    plt.scatter(np.ma.array([1, 2, 3], mask=[0, 1, 0]), [1, 2, 3])
    assert told()["series"][0]["x"] == [1, None, 3]
    plt.close()
    plt.plot(np.array(["2024-01-01", "NaT", "2024-01-01T00:00:00.5"], "datetime64[ns]"), [1, 2, 3])
    assert told()["series"][0]["x"] == ["2024-01-01T00:00:00", None, "2024-01-01T00:00:00.5"]


def test_dates_have_the_zone_that_they_had() -> None:
    zone = datetime.timezone(datetime.timedelta(hours=2))
    plt.bar([datetime.datetime(2024, 1, 1, 12)], [1])
    assert told()["series"][0]["x"] == ["2024-01-01T12:00:00"]
    plt.close()
    plt.scatter([datetime.datetime(2024, 1, 1, 12, tzinfo=zone)], [1])
    assert told()["series"][0]["x"] == ["2024-01-01T12:00:00+02:00"]
    plt.close()
    plt.barh(["t"], [2], left=[datetime.datetime(2024, 1, 1)])
    chart = told()
    assert (chart["x"]["scale"], chart["y"]["scale"]) == ("category", "date")
    assert chart["series"] == [{"label": None, "x": ["t"], "y": [2], "base": ["2024-01-01T00:00:00"]}]


def test_labels_stand_for_places_only_if_nothing_stands_between() -> None:
    plt.plot([0, 1], [1, 2])
    plt.xticks([0, 1], ["u", "v"])
    chart = told()
    assert (chart["x"]["scale"], chart["series"][0]["x"]) == ("category", ["u", "v"])
    plt.plot([0, 0.5, 1], [1, 2, 3])
    chart = told()
    assert (chart["x"]["scale"], chart["series"][0]["x"]) == ("linear", [0, 1])
    assert chart["x"]["ticks"] == [{"at": 0, "label": "u"}, {"at": 1, "label": "v"}]


def test_labels_are_a_legends_too() -> None:
    plt.plot([1, 2])
    plt.plot([2, 3])
    plt.legend(["u", "v"])
    assert [one["label"] for one in told()["series"]] == ["u", "v"]
    plt.close()
    plt.pie([1, 3])
    plt.legend(["u", "v"])
    assert [one["label"] for one in told()["series"][0]["slices"]] == ["u", "v"]
    plt.close()
    plt.errorbar([1, 2], [3, 4], yerr=1, label="e")
    plt.plot([1, 2], [3, 4], "r")
    plt.plot([1, 2], [5, 6], "r")
    plt.legend(["e", "p", "q"])
    assert [one["label"] for one in told()["series"]] == ["e", None, None], "two of one colour are not told apart"
    plt.close()
    plt.hist([[1, 2, 2], [1, 1, 2]], bins=2, label=["u", "v"])
    assert [one["label"] for one in told()["series"]] == ["u", "v"]


def test_short_lines_on_bars_are_their_errors() -> None:
    plt.bar(["a", "b"], [1, 2])  # as seaborn does
    plt.plot([0, 0], [0.5, 1.5])
    plt.plot([1, 1], [float("nan")] * 2)
    assert told()["type"] == "bar"
    plt.plot([0, 1], [1, 2])
    assert [one["type"] for one in told()["charts"]] == ["bar", "line"]


def test_ticks_are_those_that_are_seen() -> None:
    plt.plot(range(100))
    told()
    plt.xticks([0, 5, 10, 50])
    plt.xlim(0, 10)
    assert [tick["at"] for tick in told()["x"]["ticks"]] == [0, 5, 10]
    plt.close()
    plt.plot([1, 2])
    plt.twinx().plot([3, 4])
    one, other = told()["charts"]
    assert one["x"]["ticks"] == other["x"]["ticks"]
    assert len(one["x"]["ticks"]) > 3


def test_what_was_removed_is_not_told() -> None:
    plt.bar(["a"], [1])
    for patch in plt.bar(["a"], [2]).patches:
        patch.remove()
    assert [one["y"] for one in told()["series"]] == [[1]]


def test_the_figure_looks_as_before() -> None:
    figure, (left, right) = plt.subplots(1, 2)
    left.boxplot([[1, 2, 3]])
    right.bar(["a", "b"], [1, 2], label="n")
    right.legend()
    pictures = []
    for _ in range(2):
        buffer = io.BytesIO()
        figure.savefig(buffer, metadata={"Software": None})
        pictures.append(buffer.getvalue())
        assert charts.as_chart(figure) is not None
    assert pictures[0] == pictures[1]


class Liar(Line2D):
    def get_xdata(self, orig: bool = True) -> Any:
        raise KeyError("no")


class Endless(Line2D):
    def get_label(self) -> Any:
        return "x" * 10_000_000


class Leaving(Line2D):
    def get_drawstyle(self) -> Any:
        raise SystemExit(3)


class Hanging(Line2D):
    def get_drawstyle(self) -> Any:
        raise KeyboardInterrupt


def test_artists_that_lie() -> None:
    plt.gca().add_line(Leaving([1, 2], [3, 4]))
    assert told(drawn=False) is None
    plt.close()
    plt.gca().add_line(Hanging([1, 2], [3, 4]))
    with pytest.raises(KeyboardInterrupt):
        charts.as_chart(plt.gcf())
    plt.close()
    plt.gca().add_line(Liar([1, 2], [3, 4]))
    assert told(drawn=False) is None
    plt.close()
    plt.gca().add_line(Endless([1, 2], [3, 4]))
    assert len(json.dumps(told(drawn=False))) < 20_000


@pytest.mark.parametrize(
    "body",
    [
        None,
        [],
        "line",
        {},
        {"type": "line", "title": None, "x": None, "y": None, "series": []},
        {"type": "pie", "title": None, "series": []},
        {"type": "pie", "title": None, "series": [{"slices": [{"label": "a", "share": "much"}]}]},
        {"type": "pie", "title": None, "series": [{"slices": [{"label": "a", "share": "0.5"}]}]},
        {"type": "pie", "title": None, "series": [{"slices": [{"label": "a", "share": 10**400}]}]},
        {"type": "pie", "title": None, "series": [{"slices": [{"label": "a", "share": float("nan")}]}]},
        {"type": "surface", "title": None, "series": []},
        {"type": "composite", "title": None, "charts": [{"type": "composite", "title": None, "charts": []}]},
        {"type": "composite", "title": {"a": 1}, "charts": []},
    ],
)
def test_what_the_code_made_up_is_no_chart(body: Any) -> None:
    assert chart_of(body) is None


def test_series_of_two_lengths_are_no_chart() -> None:
    plt.plot([1, 2], [3, 4])
    chart = told()
    for broken in ([1], [1, True], [1, [2]], [1, float("nan")], [1, -float("inf")], [1, 10**400], "12", None):
        chart["series"][0]["x"] = broken
        assert chart_of(chart) is None, broken
