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
contours, three dimensions. Of figures in which something is told apart (axes) the rest is still told.
"""

import math
import sys
from typing import Any, Callable, Dict, List, Optional, Set, Tuple

from .plots import BOXES

MIME = "application/vnd.casemate.chart+json"
POINTS = 100_000  # of a figure; one with more has no chart
TICKS = 100
_TEXT_LIMIT = 1_000
_PLAIN = {int, float}
Chart = Dict[str, Any]
Turn = Callable[[Any], Any]


class _Untold(Exception):
    """There is something in it that is not known, or too much of it."""


def as_chart(figure: Any) -> Optional[Chart]:
    """None for what can't be told; whatever the user's artists do, nothing is raised."""
    try:
        return _chart_of(figure)
    except Exception:  # artists may be anybody's: then there is a picture and no chart
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
    if not charts or budget[0] < 0:
        return None
    whole = getattr(figure, "_suptitle", None)
    title = None if whole is None else _text(whole.get_text())
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

    def charts(self) -> List[Chart]:
        """One for each kind of thing there is. Raises _Untold when there is another one, too."""
        axes = self._axes
        if axes.name != "rectilinear" or axes.images or axes.tables:
            raise _Untold
        if axes.patches and all(isinstance(patch, self._patches.Wedge) for patch in axes.patches):
            if axes.lines or axes.collections:
                raise _Untold
            return [self._chart("pie", [self._pie()])]
        bars, of_errors = self._bars(), self._of_errors()
        taken = {id(patch) for container in bars for patch in container.patches}
        boxes, in_boxes = self._boxes()
        if any(id(patch) not in taken | in_boxes for patch in axes.patches):
            raise _Untold
        lines: List[Dict[str, Any]] = []
        clouds: List[Dict[str, Any]] = []
        for line in axes.lines:
            if id(line) not in of_errors | in_boxes and line.get_visible() and line.get_transform() == axes.transData:
                has_line = str(line.get_linestyle()) not in ("None", " ", "")
                (lines if has_line else clouds).append(self._line(line))
        for collection in axes.collections:
            if id(collection) not in of_errors:
                clouds.append(self._cloud(collection))
        found = [
            self._chart("bar", [self._bar(container) for container in bars], _lies(bars)),
            self._chart("line", lines),
            self._chart("scatter", [cloud for cloud in clouds if cloud["x"]]),
            self._chart("box", [box for box, _ in boxes], any(lies for _, lies in boxes)),
        ]
        return [chart for chart in found if chart["series"]]

    def _chart(self, kind: str, series: List[Any], horizontal: bool = False) -> Chart:
        chart: Chart = {"type": kind, "title": self._title()}
        if not series:
            return {**chart, "series": series}
        if kind != "pie":
            across, upward = _axis(self._axes.xaxis), _axis(self._axes.yaxis)
            chart.update({"x": upward, "y": across} if horizontal else {"x": across, "y": upward})
            if horizontal:
                chart["horizontal"] = True
        return {**chart, "series": series}

    def _title(self) -> Optional[str]:
        return next((title for loc in ("center", "left", "right") if (title := _text(self._axes.get_title(loc)))), None)

    def _spend(self, points: int) -> None:
        self._budget[0] -= points
        if self._budget[0] < 0:
            raise _Untold

    # ------------------------------------------------------------------------------------------------- kinds

    def _line(self, line: Any) -> Dict[str, Any]:
        x, y = line.get_xdata(orig=True), line.get_ydata(orig=True)
        if len(x) != len(y):  # one of them stood for many
            x, y = line.get_xdata(orig=False), line.get_ydata(orig=False)
        self._spend(len(x))
        return {
            "label": _label(line),
            "x": _values(x, _turn(self._axes.xaxis)),
            "y": _values(y, _turn(self._axes.yaxis)),
        }

    def _cloud(self, collection: Any) -> Dict[str, Any]:
        kind, axes = self._collections.PathCollection, self._axes
        if type(collection).__name__ != kind.__name__ or collection.get_offset_transform() != axes.transData:
            raise _Untold
        places = collection.get_offsets()
        self._spend(len(places))
        x, y = (places[:, 0], places[:, 1]) if len(places) else ([], [])
        return {"label": _label(collection), "x": _values(x, _turn(axes.xaxis)), "y": _values(y, _turn(axes.yaxis))}

    def _bars(self) -> List[Any]:
        return [one for one in self._axes.containers if isinstance(one, self._containers.BarContainer) and one.patches]

    def _of_errors(self) -> Set[int]:
        """What belongs to error bars: their caps and strokes; the data's own line does not."""
        found: Set[int] = set()
        for container in self._axes.containers:
            if isinstance(container, self._containers.ErrorbarContainer):
                _, caps, strokes = container.lines
                found.update(id(part) for part in (*caps, *strokes))
        return found

    def _bar(self, container: Any) -> Dict[str, Any]:
        self._spend(len(container.patches))
        lies = _lies([container])
        axis = self._axes.yaxis if lies else self._axes.xaxis
        places, lengths, bases, widths = [], [], [], []
        for patch in container.patches:
            across = (patch.get_x(), patch.get_width())
            upward = (patch.get_y(), patch.get_height())
            (start, width), (base, length) = (upward, across) if lies else (across, upward)
            places.append(start + width / 2)
            widths.append(width)
            bases.append(base)
            lengths.append(length)
        names = _names(axis)
        series = {
            "label": _label(container),
            "x": _values(places, _turn(axis)) if names is None else [_name_at(names, place) for place in places],
            "y": _values(lengths, _number),
        }
        if any(bases):
            series["base"] = _values(bases, _number)
        if names is None:
            series["width"] = _values(widths, _number)
        return series

    def _pie(self) -> Dict[str, Any]:
        wedges = self._axes.patches
        self._spend(len(wedges))
        shares = [(_label(wedge), abs(float(wedge.theta2) - float(wedge.theta1)) / 360) for wedge in wedges]
        return {"label": None, "slices": [{"label": label, "share": _number(share)} for label, share in shares]}

    # ------------------------------------------------------------------------------------------------- boxes

    def _boxes(self) -> Tuple[List[Tuple[Dict[str, Any], bool]], Set[int]]:
        """Of each box what it says and whether it lies, and the parts of all of them, as Axes.bxp has told us."""
        found: List[Tuple[Dict[str, Any], bool]] = []
        members: Set[int] = set()
        there = {id(part) for part in self._axes.get_children()}
        for stats, made in getattr(self._axes, BOXES, ()):
            for box, median in zip(stats, made["medians"]):
                if id(median) in there:  # nobody has removed it
                    self._spend(1 + len(box.get("fliers", ())))
                    found.append(self._box(box, median))
            members.update(id(part) for parts in made.values() for part in parts)
        return found, members

    def _box(self, stats: Any, median: Any) -> Tuple[Dict[str, Any], bool]:
        (x, y), (other_x, other_y) = median.get_xydata()[:2]
        lies = bool(x == other_x and y != other_y)
        where = (y + other_y) / 2 if lies else (x + other_x) / 2
        names = _names(self._axes.yaxis if lies else self._axes.xaxis)
        told = {
            "label": None if names is None else _name_at(names, where),
            "at": _number(where),
            "min": _number(stats["whislo"]),
            "first_quartile": _number(stats["q1"]),
            "median": _number(stats["med"]),
            "third_quartile": _number(stats["q3"]),
            "max": _number(stats["whishi"]),
            "outliers": _values(stats.get("fliers", ()), _number),
        }
        return told, lies


def _lies(containers: List[Any]) -> bool:
    return any(getattr(one, "orientation", None) == "horizontal" for one in containers)


# ------------------------------------------------------------------------------------------------- axes and values


def _axis(axis: Any) -> Dict[str, Any]:
    scale = "date" if _has_dates(axis) else "category" if _names(axis) is not None else str(axis.get_scale())
    names, turn = _names(axis) or {}, _turn(axis)
    ticks = [{"at": names.get(place, turn(place)), "label": label or None} for place, label in _ticks(axis)[:TICKS]]
    return {"label": _text(axis.get_label_text()), "scale": scale, "ticks": ticks}


def _converter(axis: Any) -> Any:
    get = getattr(axis, "get_converter", None)  # matplotlib 3.10
    return get() if get is not None else axis.converter


def _has_dates(axis: Any) -> bool:
    kind = type(_converter(axis))
    return "dates" in kind.__module__ or kind.__name__ in ("DatetimeConverter", "PeriodConverter")


def _names(axis: Any) -> Optional[Dict[float, str]]:
    """Places and names, where an axis has names for places: of text, or of labels that stand for themselves."""
    known = getattr(getattr(axis, "units", None), "_mapping", None)
    if known is not None:
        return {float(place): _clipped(name) for name, place in known.items()}
    formatter = axis.get_major_formatter()
    if type(formatter).__name__ not in ("FixedFormatter", "FuncFormatter"):
        return None
    if type(axis.get_major_locator()).__name__ != "FixedLocator":
        return None
    return {float(place): label for place, label in _ticks(axis) if label} or None


def _ticks(axis: Any) -> List[Tuple[Any, str]]:
    """As they were drawn: to ask the axis would make them anew."""
    return [(tick.get_loc(), _clipped(tick.label1.get_text())) for tick in axis.majorTicks]


def _name_at(names: Dict[float, str], place: float) -> Any:
    """The name nearest to *place*: bars that stand beside each other stand beside it. The place if none is near."""
    near = min(names, key=lambda known: abs(known - place))
    return names[near] if abs(near - place) <= 0.5 else _number(place)


def _turn(axis: Any) -> Turn:
    """What makes a value of an axis JSON."""
    if _has_dates(axis):
        return _date
    known = getattr(getattr(axis, "units", None), "_mapping", None)
    if known is None:
        return _number
    names = {float(place): _clipped(name) for name, place in known.items()}
    return lambda value: _clipped(value) if isinstance(value, str) else names.get(float(value), _number(value))


def _values(values: Any, turn: Turn) -> List[Any]:
    as_list = getattr(values, "filled", None)  # masked: what is masked is missing
    if as_list is not None and getattr(values, "mask", None) is not None and getattr(values.mask, "any", bool)():
        values = values.astype(float).filled(math.nan)
    if type(values).__module__.partition(".")[0] == "numpy" and values.dtype.kind != "M":
        values = values.tolist()
    if turn is _number and set(map(type, values)) <= _PLAIN and all(map(math.isfinite, values)):
        return list(values)
    return [turn(value) for value in values]


def _number(value: Any) -> Any:
    """A number as JSON has it; of what matplotlib was given, too: dates come here where no axis knows of them."""
    if isinstance(value, str):
        return _clipped(value)
    if hasattr(value, "isoformat") or hasattr(value, "to_timestamp") or type(value).__name__ == "datetime64":
        return _date(value)
    if isinstance(value, bool):
        return int(value)
    if type(value) is int:
        return value if abs(value) < 1 << 53 else float(value)
    number = float(value)
    if not math.isfinite(number):
        return None
    return int(number) if number.is_integer() and abs(number) < 1 << 53 else number


def _date(value: Any) -> Any:
    """ISO 8601. A number is matplotlib's: days since its epoch."""
    if hasattr(value, "to_timestamp"):  # a Period of pandas
        value = value.to_timestamp()
    if type(value).__name__ == "datetime64":
        text = str(value)
        return None if text == "NaT" else text
    if hasattr(value, "isoformat"):
        text = str(value.isoformat())
        return None if text == "NaT" else text
    number = float(value)
    return str(sys.modules["matplotlib.dates"].num2date(number).isoformat()) if math.isfinite(number) else None


def _label(artist: Any) -> Optional[str]:
    """What a legend would say of it."""
    label = artist.get_label()
    text = "" if label is None else str(label)
    return None if text.startswith("_") else _text(text)


def _text(value: Any) -> Optional[str]:
    return _clipped(value) or None


def _clipped(value: Any) -> str:
    text = str(value)
    return text if len(text) <= _TEXT_LIMIT else text[:_TEXT_LIMIT] + "…"
