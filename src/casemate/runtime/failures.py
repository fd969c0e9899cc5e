"""Exceptions of the user's code as text: name, value, traceback, without frames that are not the user's."""

import json
import os
import traceback
from typing import Any, Callable, Dict, Iterator, List, Optional

from .engines import Limits

_HERE = os.path.dirname(os.path.abspath(__file__)) + os.sep
_encode = json.dumps
_NAME_LIMIT = 200
_PACKET_SHARE = 64 * 1024  # value and traceback go in one packet, whatever the caller's limits say
_type_name: Any = type.__dict__["__name__"].__get__  # what a metaclass can't falsify
_CELL = "<cell "  # how the file names of cells begin
hidden: List[str] = [_HERE]  # folders whose frames are not shown


def describe(error: BaseException, limits: Limits) -> Dict[str, Any]:
    """*error* as an end. Whatever the error's own methods do, nothing but KeyboardInterrupt gets out."""
    end = {
        "kind": "error",
        "name": _type_name(type(error)),
        "value": _guarded(lambda: str(error)),  # first: the traceback module would take SIGINT for the end of a __str__
        "traceback": format_error(error, limits.traceback_bytes),
    }
    return bounded(end, limits)


def name_of(value: Any) -> str:
    """The name of its class."""
    return str(_type_name(type(value)))


def bounded(end: Dict[str, Any], limits: Limits) -> Dict[str, Any]:
    """*end* with texts that fit into one packet."""
    if end["kind"] != "error":
        return end
    return {
        "kind": "error",
        "name": _cut(end["name"], _NAME_LIMIT),
        "value": _cut(end["value"], min(limits.value_bytes, _PACKET_SHARE)),
        "traceback": _cut(end["traceback"], min(limits.traceback_bytes, _PACKET_SHARE)),
    }


def format_error(error: BaseException, keep: int) -> str:
    """The traceback as Python prints it, of some *keep* characters at most."""
    return _guarded(lambda: _gathered(_formatted(error), keep), _type_name(type(error)) + ": ")


def _guarded(act: Callable[[], str], before: str = "") -> str:
    try:
        return str.__str__(act())  # it may be of a class of theirs, whose other methods lie
    except KeyboardInterrupt:
        raise
    except BaseException as second:  # the user's __str__, __repr__, __notes__
        return "%s<unprintable: %s>\n" % (before, _type_name(type(second)))


def _formatted(error: BaseException) -> Iterator[str]:
    trace = error.__traceback__
    while trace is not None and not trace.tb_frame.f_code.co_filename.startswith(_CELL):
        trace = trace.tb_next
    shown = traceback.TracebackException(type(error), error, trace or _first_visible(error))
    _hide(shown)
    if trace is None and not shown.stack:
        return shown.format_exception_only()
    return shown.format()


def _first_visible(error: BaseException) -> Optional[Any]:
    trace = error.__traceback__
    while trace is not None and _is_hidden(trace.tb_frame.f_code.co_filename):
        trace = trace.tb_next
    return trace


def _hide(shown: Any) -> None:
    """Take the hidden frames out of all that is linked to *shown*."""
    seen = set()
    todo = [shown]
    while todo:
        one = todo.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        if one.stack:
            one.stack[:] = [frame for frame in one.stack if not _is_hidden(frame.filename)]
        todo += [one.__cause__, one.__context__, *(getattr(one, "exceptions", None) or ())]


def _is_hidden(filename: str) -> bool:
    return filename.startswith(tuple(hidden))


def _gathered(pieces: Iterator[str], keep: int) -> str:
    """All of it, or the beginning and the last piece, so that a long one costs no memory."""
    parts: List[str] = []
    size = 0
    last = ""
    for piece in pieces:
        last = piece if len(piece) <= keep else _middle_out(piece, keep)
        if size <= 4 * keep:
            parts.append(last)
            size += len(last)
            last = ""
    return "".join(parts) + last


def _cut(text: str, limit: int) -> str:
    """*text* with its middle left out until its JSON has at most *limit* bytes."""
    keep = limit
    shown = text if len(text) <= keep else _middle_out(text, keep)
    while len(_encode(shown)) - 2 > limit and keep:
        keep = keep * 2 // 3
        shown = _middle_out(text, keep)
    return shown


def _middle_out(text: str, keep: int) -> str:
    return "%s\n... %d characters left out ...\n%s" % (
        text[: keep // 2],
        max(0, len(text) - keep),
        text[len(text) - keep // 2 :],
    )
