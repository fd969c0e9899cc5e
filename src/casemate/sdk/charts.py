"""Figures as data: what ``Result.chart`` gives. Whatever the code has made up is looked at before it is believed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

CHART = "application/vnd.casemate.chart+json"
Value = float | int | str | None  # a number, a category, a date in ISO 8601, or what is missing


@dataclass(frozen=True, slots=True)
class Tick:
    at: Value
    label: str | None


@dataclass(frozen=True, slots=True)
class Axis:
    """*scale*: linear, log, symlog, …; date where values are ISO 8601; category where they are names."""

    label: str | None
    scale: str
    ticks: tuple[Tick, ...]


@dataclass(frozen=True, slots=True)
class Points:
    """A line, or a cloud: *x* and *y* of the same length."""

    label: str | None
    x: tuple[Value, ...]
    y: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Bars:
    """Where they stand and how long they are. *base*: where they begin, if not at 0; *width*: where *x* is a number."""

    label: str | None
    x: tuple[Value, ...]
    y: tuple[Value, ...]
    base: tuple[Value, ...] | None
    width: tuple[Value, ...] | None


@dataclass(frozen=True, slots=True)
class Slice:
    """*share* of the circle, 0 to 1."""

    label: str | None
    share: float


@dataclass(frozen=True, slots=True)
class Box:
    """One box of a box plot, *at* its place on the axis of names."""

    label: str | None
    at: Value
    min: Value
    first_quartile: Value
    median: Value
    third_quartile: Value
    max: Value
    outliers: tuple[Value, ...]


Series = Points | Bars | Box | Slice


@dataclass(frozen=True, slots=True)
class Chart:
    """*type* is line, scatter, bar, pie, box; or composite, which has *charts* and no series.

    Of a line or scatter the *series* are Points, of bars Bars, of a box plot Boxes, of a pie Slices. *horizontal*: bars
    and boxes lie, and *x* is the axis that goes upwards.
    """

    type: str
    title: str | None
    x: Axis | None
    y: Axis | None
    series: tuple[Series, ...]
    horizontal: bool = False
    charts: tuple[Chart, ...] = ()


def chart_of(body: Any, depth: int = 1) -> Chart | None:
    """None for what is no chart of ours."""
    try:
        return _chart(body, depth)
    except (IndexError, KeyError, TypeError, ValueError):
        return None


def _chart(body: Mapping[str, Any], depth: int) -> Chart:
    kind, title = str(body["type"]), _text(body["title"])
    if kind == "composite":
        if depth == 0:
            raise ValueError("a composite of composites")
        return Chart(kind, title, None, None, (), charts=tuple(_chart(one, depth - 1) for one in _list(body["charts"])))
    if kind == "pie":
        slices = [Slice(_text(one["label"]), _share(one["share"])) for one in _list(_list(body["series"])[0]["slices"])]
        return Chart(kind, title, None, None, tuple(slices))
    read = _READ[kind]
    series = tuple(read(one) for one in _list(body["series"]))
    return Chart(kind, title, _axis(body["x"]), _axis(body["y"]), series, body.get("horizontal") is True)


def _axis(body: Mapping[str, Any]) -> Axis:
    ticks = tuple(Tick(_value(one["at"]), _text(one["label"])) for one in _list(body["ticks"]))
    if not isinstance(body["scale"], str):
        raise TypeError("no scale")
    return Axis(_text(body["label"]), body["scale"], ticks)


def _points(body: Mapping[str, Any]) -> Points:
    x, y = _values(body["x"]), _values(body["y"])
    if len(x) != len(y):
        raise ValueError("as many x as y")
    return Points(_text(body["label"]), x, y)


def _bars(body: Mapping[str, Any]) -> Bars:
    points = _points(body)
    base, width = (None if body.get(key) is None else _values(body[key]) for key in ("base", "width"))
    if any(more is not None and len(more) != len(points.x) for more in (base, width)):
        raise ValueError("one for each bar")
    return Bars(points.label, points.x, points.y, base, width)


def _box(body: Mapping[str, Any]) -> Box:
    names = ("at", "min", "first_quartile", "median", "third_quartile", "max")
    return Box(label=_text(body["label"]), outliers=_values(body["outliers"]), **{n: _value(body[n]) for n in names})


_READ: Mapping[str, Callable[[Mapping[str, Any]], Series]] = {
    "line": _points,
    "scatter": _points,
    "bar": _bars,
    "box": _box,
}


def _list(value: Any) -> Sequence[Any]:
    if not isinstance(value, list):
        raise TypeError("no list")
    return value


def _values(value: Any) -> tuple[Value, ...]:
    return tuple(_value(one) for one in _list(value))


def _share(value: Any) -> float:
    # A whole circle's angles may come out a little above 1. NaN compares as False.
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1.001:
        raise ValueError("no share")
    return float(value)


def _value(value: Any) -> Value:
    if isinstance(value, (int, float)) and not abs(value) <= sys.float_info.max:
        raise ValueError("null stands for what is no number")
    if value is None or (isinstance(value, (int, float, str)) and not isinstance(value, bool)):
        return value
    raise TypeError("no value")


def _text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    raise TypeError("no text")
