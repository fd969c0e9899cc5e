"""What a name is, where there is no IPython to say it."""

import builtins
import inspect
import re
from typing import Any, Dict, List

_NOTHING: Dict[str, Any] = {"found": False, "data": {}}
_BEFORE, _AFTER = re.compile(r"[^\W\d][\w.]*$"), re.compile(r"\w*")
_CALLS = re.compile(r"([^\W\d][\w.]*)\([^()]*$")
_SHOWN_CHARS = 2_000  # of a value


def describe(names: Dict[str, Any], code: str, cursor: int, detail: int) -> Dict[str, Any]:
    """The name at *cursor*, or the one that is called there, among *names*: an answer of `Engine.inspect`."""
    path = _path_at(code, cursor)
    first, *rest = path.split(".")
    try:
        value = names[first] if first in names else getattr(builtins, first)
        for name in rest:
            value = getattr(value, name)
    except Exception:  # a property's
        return dict(_NOTHING)
    return {"found": True, "data": {"text/plain": "\n".join(_lines(path, value, detail))}}


def _path_at(code: str, cursor: int) -> str:
    before = _BEFORE.search(code, 0, cursor)
    if before:
        after = _AFTER.match(code, cursor)
        return before[0] + (after[0] if after else "")
    called = _CALLS.search(code, 0, cursor)
    return called[1] if called else ""


def _lines(path: str, value: Any, detail: int) -> List[str]:
    lines = []
    if callable(value):
        try:
            lines.append("Signature: %s%s" % (path, inspect.signature(value)))
        except (TypeError, ValueError):
            lines.append("Signature: %s(...)" % path)
    lines.append("Type:      %s" % type(value).__name__)
    if not callable(value):
        lines.append("Value:     %s" % repr(value)[:_SHOWN_CHARS])
    if detail:
        try:
            return [*lines, "Source:", inspect.getsource(value)]
        except (OSError, TypeError):
            pass
    text = inspect.getdoc(value)
    return [*lines, "Docstring:", text] if text else lines
