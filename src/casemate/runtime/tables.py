"""A DataFrame or Series as data: columns with types, rows, the true shape.

    {"columns": [{"name", "type"}], "rows": [[…]], "shape": [rows, columns], "index": [label…]?}

Types are int, float, bool, text, datetime, duration, category and other. null stands for what is missing and for what
JSON has no number for; a datetime and a duration are ISO 8601; other is text. `index` is there unless it counts from 0.
"""

import math
import sys
from typing import Any, Callable, Dict, List

from .engines import Limits

MIME = "application/vnd.casemate.table+json"
_TEXT_LIMIT = 10_000  # characters of one value
_INFERRED = {
    "string": "text",
    "empty": "other",
    "integer": "int",
    "boolean": "bool",
    "floating": "float",
    "mixed-integer-float": "float",
    "datetime64": "datetime",
    "datetime": "datetime",
    "date": "datetime",
    "timedelta64": "duration",
    "timedelta": "duration",
    "categorical": "category",
}


def as_in_a_notebook(pandas: Any) -> None:
    """Wide frames as a notebook shows them. pandas, imported before there was any IPython, took this for a terminal."""
    options: Any = getattr(sys.modules.get("pandas._config.config"), "_registered_options", {})
    known = options.get("display.max_columns")
    if known is not None and known.defval == 0:
        options[known.key] = known._replace(defval=20)
        pandas.reset_option(known.key)


def is_table(value: Any) -> bool:
    pandas = sys.modules.get("pandas")
    kinds = (getattr(pandas, "DataFrame", None), getattr(pandas, "Series", None))
    return None not in kinds and isinstance(value, kinds)  # type: ignore[arg-type]


def as_table(value: Any, limits: Limits) -> Dict[str, Any]:
    pandas: Any = sys.modules["pandas"]
    rows = value.shape[0]
    cut = value.iloc[: limits.table_rows]
    if isinstance(value, pandas.Series):
        columns, shape = [cut], [rows, 1]
    else:
        shape = [rows, value.shape[1]]
        columns = [cut.iloc[:, place] for place in range(min(shape[1], limits.table_columns))]
    kinds = [_kind_of(pandas, column) for column in columns]
    values = [_values(pandas, column, kind) for column, kind in zip(columns, kinds)]
    table = {
        "columns": [{"name": _name(column.name), "type": kind} for column, kind in zip(columns, kinds)],
        "rows": [list(row) for row in zip(*values)] if values else [[] for _ in range(len(cut))],
        "shape": shape,
    }
    index = cut.index
    if not (isinstance(index, pandas.RangeIndex) and index.start == 0 and index.step == 1):
        table["index"] = [_plain(label) for label in index]
    return table


def _kind_of(pandas: Any, column: Any) -> str:
    return _INFERRED.get(pandas.api.types.infer_dtype(column, skipna=True), "other")


def _values(pandas: Any, column: Any, kind: str) -> List[Any]:
    values = column.astype(object).tolist()
    missing = column.isna().tolist()
    turn: Callable[[Any], Any] = _TURNED.get(kind, _text)
    return [None if gone else turn(value) for value, gone in zip(values, missing)]


def _plain(value: Any) -> Any:
    if isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        return _float(value)
    return [_plain(part) for part in value] if isinstance(value, tuple) else _text(value)


def _float(value: Any) -> Any:
    number = float(value)
    return number if math.isfinite(number) else None


def _iso(value: Any) -> str:
    to_iso = getattr(value, "isoformat", None)  # datetime.timedelta has none
    return str(to_iso()) if to_iso is not None else _text(value)


def _name(label: Any) -> str:
    """A column's; one of several levels is a tuple."""
    return str(tuple(map(_name, label))) if isinstance(label, tuple) else _text(label)


def _text(value: Any) -> str:
    text = "" if value is None else str(value)
    return text if len(text) <= _TEXT_LIMIT else text[:_TEXT_LIMIT] + "…"


_TURNED: Dict[str, Callable[[Any], Any]] = {
    "int": int,
    "float": _float,
    "bool": bool,
    "category": _plain,
    "datetime": _iso,
    "duration": _iso,
}
