"""JSON bodies: ASCII objects of bounded length, depth and number of containers.

Bounds stand before the parse, because a parser's objects are many times the size of its text.
Non-ASCII characters travel as ``\\u`` escapes: one of them may not turn a whole text into wide characters.
"""

from __future__ import annotations

import json
import re
from typing import Any

from casemate.errors import InvalidSpec, ProtocolViolation

MAX_JSON = 61_440
MAX_DEPTH = 16
MAX_CONTAINERS = 1_024

# A string without an end reaches to the end of all: else each quote within it would be tried as a beginning
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*+(?:"|\\?\Z)|[][{}]', re.DOTALL)


def dump(body: dict[str, Any]) -> bytes:
    """The bytes of *body*. Raises InvalidSpec when the peer would refuse them."""
    text: str = _ENCODER.encode(body)
    if len(text) > MAX_JSON or not _is_modest(text):
        raise InvalidSpec(
            f"a message of {len(text)} bytes",
            hint=f"at most {MAX_JSON} bytes, {MAX_DEPTH} levels and {MAX_CONTAINERS} lists and objects",
        )
    return text.encode("ascii")


def load(text: str) -> dict[str, Any]:
    """The object *text* stands for. Raises ProtocolViolation."""
    if not _is_modest(text):
        raise ProtocolViolation(f"a body with more than {MAX_DEPTH} levels or {MAX_CONTAINERS} containers")
    try:
        body = _DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        raise ProtocolViolation("a body that is not JSON", evidence={"begins": text[:64]}) from error
    if not isinstance(body, dict):
        raise ProtocolViolation("a body that is not an object", evidence={"begins": text[:64]})
    return body


def _is_modest(text: str) -> bool:
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return True  # nearly every body; brackets inside strings only make it look deeper than it is
    containers = depth = 0
    for token in _TOKEN.finditer(text):
        sign = text[token.start()]
        if sign in "[{":
            containers, depth = containers + 1, depth + 1
            if depth > MAX_DEPTH or containers > MAX_CONTAINERS:
                return False
        elif sign != '"':
            depth -= 1
    return True


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


_ENCODER = json.JSONEncoder(separators=(",", ":"), allow_nan=False)
_DECODER = json.JSONDecoder(parse_constant=_refuse)
