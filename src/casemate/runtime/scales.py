"""An axis of matplotlib's as data, and the values that stand on it: numbers, names, dates in ISO 8601."""

import math
import re
import sys
from typing import Any, Dict, Iterable, List, Optional, Tuple

TICKS = 100
_TEXT_LIMIT = 1_000
_PLAIN = {int, float}
_EDGE = 1e-6  # of what is seen: ticks are there or not by this
_SAME = 6  # decimals by which places are told apart
_NO_FRACTION = re.compile(r"(\.\d*?[1-9])?\.?0*$")  # of a second


class Scale:
    """One of the two axes of a place to draw in.

    It has names for places where it is one of text (`units`), or where its labels were set. Such labels stand for
    themselves, as long as nothing stands between them: an axis from 0 to π in three labels is one of numbers.
    """

    def __init__(self, axis: Any) -> None:
        self._axis = axis
        self._zone: Any = None
        converter = _converter(axis)
        kind = type(converter)
        self._has_dates = "dates" in kind.__module__ or kind.__name__ in ("DatetimeConverter", "PeriodConverter")
        units = getattr(axis, "units", None)
        known = getattr(units, "_mapping", None)
        self._is_of_text = known is not None
        if known is not None:
            self._names: Dict[float, str] = {_key(place): clipped(name) for name, place in known.items()}
        else:
            self._names = {} if self._has_dates else _set_labels(axis)
        if self._has_dates and hasattr(units, "utcoffset"):
            self._zone = units

    @property
    def has_names(self) -> bool:
        return bool(self._names)

    def must_name(self, places: Iterable[Any], within: float = 0.0) -> None:
        """Labels that were set are no names if one of *places* is farther from all of them."""
        if self._names and not self._is_of_text and not all(self._is_named(place, within) for place in places):
            self._names = {}

    def _is_named(self, place: Any, within: float) -> bool:
        number = _key(place)
        return number in self._names or not math.isfinite(number) or abs(self._nearest(number) - number) <= within

    def _nearest(self, place: float) -> float:
        return min(self._names, key=lambda known: abs(known - place))

    def name_near(self, place: Any) -> Any:
        """Bars that stand beside each other stand beside the name. The place itself if no name is near."""
        near = self._nearest(float(place)) if math.isfinite(place) else math.inf
        return self._names[near] if abs(near - place) <= 0.5 else self.value(place)

    def value(self, value: Any) -> Any:
        """As JSON has it."""
        if self._has_dates:
            return _date(value, self._zone)
        if self._names and not isinstance(value, str) and value is not None:
            return self._names.get(_key(value)) or _number(float(value))
        return _number(value)

    def values(self, values: Any) -> List[Any]:
        if self._has_dates or self._names:
            return [self.value(value) for value in _listed(values)]
        return numbers(values)

    def told(self) -> Dict[str, Any]:
        axis = self._axis
        name = "date" if self._has_dates else "category" if self._names else str(axis.get_scale())
        low, high = sorted(map(float, axis.get_view_interval()))
        edge = (high - low) * _EDGE
        seen = [(place, label) for place, label in _ticks(axis) if low - edge <= place <= high + edge]
        ticks = [{"at": self.value(place), "label": label or None} for place, label in seen[:TICKS]]
        return {"label": text_of(axis.get_label_text()), "scale": name, "ticks": ticks}


def _key(place: Any) -> float:
    return round(float(place), _SAME)


def numbers(values: Any) -> List[Any]:
    found = _listed(values)
    if set(map(type, found)) <= _PLAIN and all(map(math.isfinite, found)):
        return found
    return [_number(value) for value in found]


def text_of(value: Any) -> Optional[str]:
    return clipped(value) or None


def clipped(value: Any) -> str:
    text = str.__str__(str(value))
    return text if len(text) <= _TEXT_LIMIT else text[:_TEXT_LIMIT] + "…"


def _converter(axis: Any) -> Any:
    get = getattr(axis, "get_converter", None)  # matplotlib 3.10
    return get() if get is not None else axis.converter


def _set_labels(axis: Any) -> Dict[float, str]:
    if type(axis.get_major_formatter()).__name__ not in ("FixedFormatter", "FuncFormatter"):
        return {}
    if type(axis.get_major_locator()).__name__ != "FixedLocator":
        return {}
    return {_key(place): label for place, label in _ticks(axis) if label}


def _ticks(axis: Any) -> List[Tuple[float, str]]:
    """Places and their labels. To ask the axis for its labels would make its ticks anew; and a twin has none."""
    places = axis.get_majorticklocs()
    return list(zip(map(float, places), map(clipped, axis.get_major_formatter().format_ticks(places))))


def _listed(values: Any) -> List[Any]:
    """A list of Python's own values, where numpy knows how; what is masked is missing."""
    if type(values).__module__.partition(".")[0] == "numpy":
        if values.dtype.kind == "M":
            return list(values.filled("NaT") if hasattr(values, "filled") else values)
        values = values.tolist()
    return list(values)


def _number(value: Any) -> Any:
    """A number as JSON has it; of what matplotlib was given, too: dates come here where no axis knows of them."""
    if isinstance(value, str):
        return clipped(value)
    if _is_date(value):
        return _date(value, None)
    if value is None or type(value).__name__ == "NAType":
        return None
    if type(value) is int:
        return value if abs(value) < 1 << 53 else float(value)
    number = float(value)
    if not math.isfinite(number):
        return None
    return int(number) if number.is_integer() and abs(number) < 1 << 53 else number


def _is_date(value: Any) -> bool:
    return hasattr(value, "isoformat") or hasattr(value, "to_timestamp") or type(value).__name__ == "datetime64"


def _date(value: Any, zone: Any) -> Optional[str]:
    """ISO 8601, of no zone where the data had none. A number is matplotlib's: days since its epoch, in UTC."""
    if value is None:
        return None
    if hasattr(value, "to_timestamp"):  # a Period of pandas
        value = value.to_timestamp()
    if type(value).__name__ == "datetime64":
        text = str(value)
        return None if text == "NaT" else _NO_FRACTION.sub(r"\1", text) if "." in text else text
    if hasattr(value, "isoformat"):
        text = str(value.isoformat())
        return None if text == "NaT" else text
    number = float(value)
    if not math.isfinite(number):
        return None
    when: Any = sys.modules["matplotlib.dates"].num2date(number)
    return str((when.replace(tzinfo=None) if zone is None else when.astimezone(zone)).isoformat())
