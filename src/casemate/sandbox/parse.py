"""Reading fields of what a guest says: each of the kind and within the bounds it must have.

The frame's length and nesting were bounded by wire; here a missing or odd field is a
ProtocolViolation, because our own agent never sends one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from casemate.errors import ProtocolViolation

MAX_NUMBER = 2**63


def text(body: Mapping[str, Any], name: str, limit: int = 65_536) -> str:
    value = body.get(name)
    if not isinstance(value, str) or len(value) > limit:
        raise _odd(name)
    return unicode(value)


def unicode(value: str) -> str:
    """*value* with U+FFFD for each half of a surrogate pair: JSON can say one, nobody could write it as UTF-8."""
    return value if value.isascii() else value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def text_or_none(body: Mapping[str, Any], name: str, limit: int = 65_536) -> str | None:
    return None if body.get(name) is None else text(body, name, limit)


def whole(body: Mapping[str, Any], name: str, low: int = 0, high: int = MAX_NUMBER) -> int:
    value = body.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise _odd(name)
    return value


def truth(body: Mapping[str, Any], name: str) -> bool:
    value = body.get(name)
    if not isinstance(value, bool):
        raise _odd(name)
    return value


def one_of(body: Mapping[str, Any], name: str, words: Sequence[str]) -> str:
    value = text(body, name, 64)
    if value not in words:
        raise _odd(name)
    return value


def number(body: Mapping[str, Any], name: str) -> float:
    value = body.get(name)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= MAX_NUMBER:
        raise _odd(name)
    return float(value)


def number_or_none(body: Mapping[str, Any], name: str) -> float | None:
    return None if body.get(name) is None else number(body, name)


def mapping(body: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = body.get(name)
    if not isinstance(value, dict):
        raise _odd(name)
    return value


def objects(body: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    value = body.get(name)
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise _odd(name)
    return value


def _odd(name: str) -> ProtocolViolation:
    return ProtocolViolation(f"the guest's field {name!r} is missing or not what it must be")
