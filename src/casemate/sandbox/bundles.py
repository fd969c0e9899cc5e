"""A result's MIME bundle as a context wrote it: checked within bounds, or refused with a reason.

    {"type": "result"|"display", "data": {mime: text, or any JSON for a JSON type}, "metadata": {},
     "display_id": text?, "update": bool, "cut": {mime: bytes it had}}

The agent forwards it unread, so what is wrong with it is no lie of its own: a result is left out, no machine lost.
"""

from __future__ import annotations

import json
import re
from typing import Any

from casemate.sandbox import parse

MAX_BYTES = 32 * 2**20  # as JSON in ASCII, which is how it goes on
MAX_DEPTH = 64
MAX_CONTAINERS = 30_000  # a table has one list for each row
MAX_VALUES = 500_000
MAX_TOKENS = 1_500_000  # looked at; what is JSON has no more within the other bounds
MAX_TYPES = 64
MAX_TEXT = 1024  # of a display's id

# A string without an end reaches to the end of all, as in wire
_TOKEN = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)|[][{},]', re.DOTALL)
_HALF = re.compile(r"\\u[dD][89a-fA-F]")  # of a surrogate pair; most have their other one
_MIME = re.compile(
    r"[a-z0-9][a-z0-9!#$&^_.+-]{0,126}/[a-z0-9][a-z0-9!#$&^_.+-]{0,126}(; ?[a-z0-9._-]{1,64}=[\w.+-]{1,64})?"
)
_JSON_TYPE = re.compile(r"application/(.*\+)?json(;.*)?")
_BASE64_TYPE = re.compile(r"(image/(?!svg\+xml).*|audio/.*|video/.*|font/.*|application/(pdf|octet-stream|zip))(;.*)?")
_BASE64 = re.compile(r"[A-Za-z0-9+/\n]*+={0,2}\n?")
_KEYS = frozenset({"type", "data", "metadata", "display_id", "update", "cut"})


class BadBundle(Exception):
    """Why it is left out."""


def is_type(mime: str) -> bool:
    return _MIME.fullmatch(mime) is not None


def checked(body: bytes | bytearray) -> bytes:
    """The same bundle as JSON in ASCII on one line. Raises BadBundle."""
    found = load(body)
    if found.keys() - _KEYS:
        raise BadBundle("a field that no result has")
    if found.get("type") not in ("result", "display"):
        raise BadBundle("neither a result nor a display")
    data, metadata, cut = found.get("data"), found.get("metadata", {}), found.get("cut", {})
    if not isinstance(data, dict) or not isinstance(metadata, dict) or not isinstance(cut, dict):
        raise BadBundle("data, metadata and cut are objects")
    if max(len(data), len(cut)) > MAX_TYPES:
        raise BadBundle(f"more than {MAX_TYPES} types")
    for mime, value in data.items():
        _check_type(mime, value)
    if not all(_MIME.fullmatch(mime) and type(had) is int and had >= 0 for mime, had in cut.items()):
        raise BadBundle("cut names no type, or no number of bytes")
    display_id, update = found.get("display_id"), found.get("update", False)
    if display_id is not None and (not isinstance(display_id, str) or len(display_id) > MAX_TEXT):
        raise BadBundle("a display_id that is no short text")
    if type(update) is not bool:
        raise BadBundle("update is neither true nor false")
    said: dict[str, Any] = {"type": found["type"], "data": data, "metadata": metadata}
    said |= {"display_id": display_id} if display_id is not None else {}
    return _dumped(said | {"update": update, "cut": cut})


def load(body: bytes | bytearray) -> dict[str, Any]:
    """The object that *body* is, of bounded size, depth and number of values. Raises BadBundle."""
    if len(body) > MAX_BYTES:
        raise BadBundle(f"over {MAX_BYTES} bytes")
    try:
        text = body.decode()
    except UnicodeDecodeError:
        raise BadBundle("not UTF-8") from None
    _check_modest(text)
    try:
        found = _DECODER.decode(text)
        if _HALF.search(text):
            found = _DECODER.decode(parse.unicode(_PLAIN.encode(found)))
    except (ValueError, RecursionError):
        raise BadBundle("not JSON") from None
    if not isinstance(found, dict):
        raise BadBundle("not an object")
    return found


def _check_type(mime: str, value: object) -> None:
    if not _MIME.fullmatch(mime):
        raise BadBundle(f"{mime[:80]!r} is not a MIME type")
    if _JSON_TYPE.fullmatch(mime):
        return
    if not isinstance(value, str):
        raise BadBundle(f"{mime} is not a text")
    if _BASE64_TYPE.fullmatch(mime):
        digits = len(value) - value.count("\n")
        if digits % 4 or not _BASE64.fullmatch(value):
            raise BadBundle(f"{mime} is not in base64")


def _check_modest(text: str) -> None:
    """Before the parse, because a parser's objects are many times the size of its text."""
    if text.count("[") + text.count("{") <= MAX_DEPTH and text.count(",") <= MAX_VALUES:
        return  # nearly every one; what stands inside strings only makes it look like more
    containers = values = depth = 0
    for seen, token in enumerate(_TOKEN.finditer(text)):
        if seen > MAX_TOKENS:
            raise BadBundle(f"over {MAX_VALUES} values")
        sign = text[token.start()]
        if sign in "[{":
            containers, depth = containers + 1, depth + 1
            if depth > MAX_DEPTH or containers > MAX_CONTAINERS:
                raise BadBundle(f"over {MAX_DEPTH} levels or {MAX_CONTAINERS} lists and objects")
        elif sign == ",":
            values += 1
            if values > MAX_VALUES:
                raise BadBundle(f"over {MAX_VALUES} values")
        elif sign != '"':
            depth -= 1


def _dumped(body: dict[str, Any]) -> bytes:
    try:
        text = _ENCODER.encode(body)
    except ValueError:  # an infinite number
        raise BadBundle("a number that JSON does not have") from None
    if len(text) > MAX_BYTES:
        raise BadBundle(f"over {MAX_BYTES} bytes")
    return text.encode("ascii")


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


_PLAIN = json.JSONEncoder(ensure_ascii=False)
_ENCODER = json.JSONEncoder(separators=(",", ":"), allow_nan=False)
_DECODER = json.JSONDecoder(parse_constant=_refuse)
