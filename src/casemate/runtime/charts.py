"""A figure of matplotlib as data, so that a product can draw it again; read from its artists, not drawn anew.

    {"type": "line" | "scatter" | "bar" | "pie" | "box", "title", "x": axis, "y": axis, "series": [series…]}
    {"type": "composite", "title", "charts": [chart…]}      several in one figure, or several kinds in one place

An axis is {"label", "scale", "ticks": [{"at", "label"}…]}; its scale linear, log, symlog, logit or what else matplotlib
calls it, date (values are ISO 8601) or category (values are names). Each series has a label, or null, and of

    line, scatter   "x": [value…], "y": [value…]
    bar             "x": [value…], "y": [length…], "base": [value…] where they do not begin at 0, "width": [number…]
                    where x is a number; "horizontal": true stands in the chart, x then goes upwards
    pie             "slices": [{"label", "share"}…], shares of the circle
    box             one series for each box: "label", "at", "min", "first_quartile", "median", "third_quartile", "max",
                    "outliers": [number…]; "horizontal" as for bars

null stands for what is missing or no number. What is of another kind has no chart: an image, a filled area, a map of
contours, steps, three dimensions. Of figures in which something is told apart (axes) the rest is still told. What is
too large has no chart either, and the result's `cut` says so.
"""

import math
import sys
from typing import Any, Dict, List, Optional, Set, Tuple, Union

from .plots import BOXES
from .results import LeftOut
from .scales import Scale, numbers, text_of

POINTS = 100_000  # of a figure; one with more has no chart
_STROKE = 8  # points of a line that marks the error of a bar, at most
Chart = Dict[str, Any]


class _Untold(Exception):
    """There is something in it that is not known."""


class _TooLarge(Exception):
    """A figure of more than POINTS."""


def as_chart(figure: Any) -> Union[Chart, LeftOut, None]:
    """None for what can't be told; whatever the user's artists do, nothing but KeyboardInterrupt is raised."""
    try:
        return _chart_of(figure)
    except KeyboardInterrupt:
        raise
    except _TooLarge:
        return LeftOut(0)
    except BaseException:  # artists may be anybody's, and exit: then there is a picture and no chart
        return None


def _chart_of(figure: Any) -> Optional[Chart]:
    budget = [POINTS]
    told: List[List[Chart]] = []
    for axes in figure.axes:
        if not axes.get_visible() or axes.get_label() == "<colorbar>":
            continue
        try:
            told.append(_Axes(axes, budget).charts())
        except _Untold:
            told.append([])
    charts = [chart for one in told for chart in one]
    if not charts:
        return None
    whole = getattr(figure, "_suptitle", None)
    title = None if whole is None else text_of(whole.get_text())
    if len(told) == len(charts) == 1:
        (only,) = charts
        only["title"] = only["title"] or title
        return only
    return {"type": "composite", "title": title, "charts": charts}


class _Axes:
    """One of a figure's coordinate systems, and what is drawn in it."""

    def __init__(self, axes: Any, budget: List[int]) -> None:
        self._axes = axes
        self._budget = budget
        self._patches: Any = sys.modules["matplotlib.patches"]
        self._containers: Any = sys.modules["matplotlib.container"]
        self._collections: Any = sys.modules["matplotlib.collections"]
        self._legend = _legend_of(axes)
        self._there = {id(part) for part in axes.get_children() if part.get_visible()}
        self._x, self._y = Scale(axes.xaxis), Scale(axes.yaxis)

    def charts(self) -> List[Chart]:
        """One for each kind of thing there is. Raises _Untold when there is another one, too."""
        axes = self._axes
        if axes.name != "rectilinear" or axes.images or axes.tables:
            raise _Untold
        patches = [patch for patch in axes.patches if id(patch) in self._there and not self._shows_nothing(patch)]
        if patches and all(isinstance(patch, self._patches.Wedge) for patch in patches):
            if axes.lines or axes.collections:
                raise _Untold
            return [self._chart("pie", [self._pie(patches)])]
        bars, of_errors = self._bars(), self._of_errors()
        in_bars = {id(patch) for container in bars for patch in container.patches}
        boxes, in_boxes = self._boxes()
        if any(id(patch) not in in_bars | in_boxes for patch in patches):
            raise _Untold
        bars_lie = _lie([getattr(one, "orientation", None) == "horizontal" for one in bars])
        boxes_lie = _lie([_lies(median) for _, median in boxes])
        lines, dots = self._lines(of_errors | in_boxes)
        if bars:
            lines = [line for line in lines if not self._is_error(line, bars, bars_lie)]
        clouds = [one for one in axes.collections if id(one) in self._there and id(one) not in of_errors]
        places = {id(cloud): self._offsets(cloud) for cloud in clouds}
        self._spend(sum(map(len, (*places.values(), *(line.get_xdata(orig=False) for line in (*lines, *dots))))))
        self._settle_names(bars, bars_lie, [*lines, *dots], list(places.values()))
        scattered = [self._line(line) for line in dots]
        scattered += [self._cloud(cloud, places[id(cloud)]) for cloud in clouds if len(places[id(cloud)])]
        found = [
            self._chart("bar", [self._bar(container, bars_lie) for container in bars], bars_lie),
            self._chart("line", [self._line(line) for line in lines]),
            self._chart("scatter", scattered),
            self._chart("box", [self._box(stats, median, boxes_lie) for stats, median in boxes], boxes_lie),
        ]
        return [chart for chart in found if chart["series"]]

    def _chart(self, kind: str, series: List[Any], horizontal: bool = False) -> Chart:
        chart: Chart = {"type": kind, "title": self._title()}
        if series and kind != "pie":
            across, upward = self._x.told(), self._y.told()
            chart.update({"x": upward, "y": across} if horizontal else {"x": across, "y": upward})
            if horizontal:
                chart["horizontal"] = True
        return {**chart, "series": series}

    def _title(self) -> Optional[str]:
        titles = (text_of(self._axes.get_title(loc)) for loc in ("center", "left", "right"))
        return next((title for title in titles if title), None)

    def _spend(self, points: int) -> None:
        self._budget[0] -= points
        if self._budget[0] < 0:
            raise _TooLarge

    def _label(self, artist: Any, *others: Any) -> Optional[str]:
        """What a legend says of it, or would."""
        for one in (artist, *others):
            label = one.get_label()
            text = "" if label is None else str(label)
            if text and not text.startswith("_"):
                return text_of(text)
        return next((self._legend[paint] for paint in map(_paint_of, (artist, *others)) if paint in self._legend), None)

    def _settle_names(self, bars: List[Any], lie: bool, lines: List[Any], clouds: List[Any]) -> None:
        """Whether labels that were set stand for places of what is drawn."""
        along = self._y if lie else self._x
        for container in bars:
            along.must_name((_span(patch, lie)[0] for patch in container.patches), within=0.5)
        for line in lines:
            self._x.must_name(line.get_xdata(orig=False))
            self._y.must_name(line.get_ydata(orig=False))
        for places in clouds:
            self._x.must_name(places[:, 0].tolist() if len(places) else ())
            self._y.must_name(places[:, 1].tolist() if len(places) else ())

    # ------------------------------------------------------------------------------------------------- kinds

    def _lines(self, of_others: Set[int]) -> Tuple[List[Any], List[Any]]:
        """Those with a line, and those of markers alone. What only marks a place (`axhline`) is not drawn in ours."""
        lines: List[Any] = []
        dots: List[Any] = []
        for line in self._axes.lines:
            if id(line) in of_others or id(line) not in self._there or line.get_transform() != self._axes.transData:
                continue
            if not len(line.get_xdata(orig=False)):  # a legend's
                continue
            if str(line.get_linestyle()) in ("None", " ", ""):
                dots.append(line)
            elif line.get_drawstyle() == "default":
                lines.append(line)
            else:
                raise _Untold
        return lines, dots

    def _line(self, line: Any) -> Dict[str, Any]:
        x, y = line.get_xdata(orig=True), line.get_ydata(orig=True)
        if len(x) != len(y):  # one of them stood for many
            x, y = line.get_xdata(orig=False), line.get_ydata(orig=False)
        wholes = [one for one in self._axes.containers if line in getattr(one, "lines", ())]  # with error bars
        return {"label": self._label(line, *wholes), "x": self._x.values(x), "y": self._y.values(y)}

    def _offsets(self, collection: Any) -> Any:
        """Where its points are."""
        name = self._collections.PathCollection.__name__
        if type(collection).__name__ != name or collection.get_offset_transform() != self._axes.transData:
            raise _Untold
        return collection.get_offsets()

    def _cloud(self, collection: Any, places: Any) -> Dict[str, Any]:
        x, y = self._x.values(places[:, 0]), self._y.values(places[:, 1])
        return {"label": self._label(collection), "x": x, "y": y}

    def _bars(self) -> List[Any]:
        kind, there = self._containers.BarContainer, self._there
        bars = [one for one in self._axes.containers if isinstance(one, kind)]
        return [one for one in bars if one.patches and all(id(patch) in there for patch in one.patches)]

    def _of_errors(self) -> Set[int]:
        """What belongs to error bars: their caps and strokes; the data's own line does not."""
        found: Set[int] = set()
        for container in self._axes.containers:
            if isinstance(container, self._containers.ErrorbarContainer):
                _, caps, strokes = container.lines
                found.update(id(part) for part in (*caps, *strokes))
        return found

    def _is_error(self, line: Any, bars: List[Any], lie: bool) -> bool:
        """As seaborn draws the error of a bar: a short line without a name, within the width of one, or nowhere."""
        across, upward = line.get_xdata(orig=False), line.get_ydata(orig=False)
        if len(across) > _STROKE or self._label(line):
            return False
        points = [point for point in zip(across, upward) if all(map(math.isfinite, point))]
        places = [y if lie else x for x, y in points]
        spans = [_span(patch, lie) for container in bars for patch in container.patches]
        return any(all(abs(place - middle) <= abs(width) / 2 for place in places) for middle, width in spans)

    def _bar(self, container: Any, lie: bool) -> Dict[str, Any]:
        patches = container.patches
        self._spend(len(patches))
        along, upward = (self._y, self._x) if lie else (self._x, self._y)
        middles, widths = zip(*(_span(patch, lie) for patch in patches))
        bases = [patch.get_x() if lie else patch.get_y() for patch in patches]
        series = {
            "label": self._label(container, patches[0]),
            "x": [along.name_near(place) for place in middles] if along.has_names else along.values(middles),
            "y": numbers([patch.get_width() if lie else patch.get_height() for patch in patches]),
        }
        if any(bases):
            series["base"] = upward.values(bases)
        if not along.has_names:
            series["width"] = numbers(widths)
        return series

    def _shows_nothing(self, patch: Any) -> bool:
        """A shadow is of another patch; one of no size is there for a legend."""
        size = (patch.get_width(), patch.get_height()) if type(patch) is self._patches.Rectangle else None
        return isinstance(patch, self._patches.Shadow) or size == (0, 0)

    def _pie(self, wedges: List[Any]) -> Dict[str, Any]:
        self._spend(len(wedges))
        shares = [abs(float(wedge.theta2) - float(wedge.theta1)) / 360 for wedge in wedges]
        if sum(shares) > 1.001:  # several, one within another
            raise _Untold
        slices = zip(map(self._label, wedges), numbers([round(share, 7) for share in shares]))
        return {"label": None, "slices": [{"label": label, "share": share} for label, share in slices]}

    # ------------------------------------------------------------------------------------------------- boxes

    def _boxes(self) -> Tuple[List[Tuple[Any, Any]], Set[int]]:
        """Of each box its numbers and its median's line; and the parts of all of them, as Axes.bxp has told us."""
        found: List[Tuple[Any, Any]] = []
        members: Set[int] = set()
        for stats, made in getattr(self._axes, BOXES, ()):
            members.update(id(part) for parts in made.values() for part in parts)
            for box, median in zip(stats, made["medians"]):
                if id(median) in self._there:  # nobody has removed it
                    self._spend(1 + len(box.get("fliers", ())))
                    found.append((box, median))
        return found, members

    def _box(self, stats: Any, median: Any, lie: bool) -> Dict[str, Any]:
        (x, y), (other_x, other_y) = median.get_xydata()[:2]
        along, where = (self._y, (y + other_y) / 2) if lie else (self._x, (x + other_x) / 2)
        near = along.name_near(where) if along.has_names else None
        keys = ("whislo", "q1", "med", "q3", "whishi")
        low, first, middle, third, high = numbers([stats[key] for key in keys])
        return {
            "label": near if isinstance(near, str) else None,
            "at": numbers([where])[0],
            "min": low,
            "first_quartile": first,
            "median": middle,
            "third_quartile": third,
            "max": high,
            "outliers": numbers(stats.get("fliers", ())),
        }


def _lie(each: List[bool]) -> bool:
    """Whether they all do. Raises _Untold where some lie and some stand."""
    if len(set(each)) > 1:
        raise _Untold
    return any(each)


def _lies(median: Any) -> bool:
    (x, y), (other_x, other_y) = median.get_xydata()[:2]
    return bool(x == other_x and y != other_y)


def _span(patch: Any, lie: bool) -> Tuple[float, float]:
    """The middle and the width of a bar."""
    start, width = (patch.get_y(), patch.get_height()) if lie else (patch.get_x(), patch.get_width())
    return float(start + width / 2), float(width)


def _legend_of(axes: Any) -> Dict[Any, str]:
    """What a legend says, by the paint of what it says it of; but for paints that are there twice."""
    legend = axes.get_legend()
    handles = () if legend is None else getattr(legend, "legend_handles", getattr(legend, "legendHandles", ()))
    found: Dict[Any, str] = {}
    twice: Set[Any] = set()
    for handle, text in zip(handles, () if legend is None else legend.get_texts()):
        paint, name = _paint_of(handle), text_of(text.get_text())
        if name and paint is not None and found.setdefault(paint, name) != name:
            twice.add(paint)
    return {paint: name for paint, name in found.items() if paint not in twice}


def _paint_of(artist: Any) -> Any:
    """What tells it from others of its kind; None if nothing does."""
    if hasattr(artist, "get_linestyle") and hasattr(artist, "get_drawstyle"):
        return "line", str(artist.get_color()), str(artist.get_linestyle()), str(artist.get_marker())
    paint = artist.get_facecolor() if hasattr(artist, "get_facecolor") else None
    if paint is None:
        return None
    plain = getattr(paint, "tolist", lambda: paint)()
    first = plain[0] if plain and isinstance(plain[0], list) else plain
    return ("filled", *(round(float(part), 6) for part in first))
