"""A result on its way out: its JSON, cut to the limits, with what was cut."""

import base64
import json
from typing import Any, Dict, NamedTuple, Optional, Tuple

from .engines import Limits
from .plots import CHART

_MIME_LIMIT = 200
_encode = json.JSONEncoder(allow_nan=False).encode


class LeftOut(NamedTuple):
    """In the place of data: it was too large to be made, or of so many bytes. 0: nobody has counted."""

    had: int


def is_json(mime: str) -> bool:
    return mime == "application/json" or mime.endswith("+json")


def encode(body: Dict[str, Any], limits: Limits) -> str:
    """The result's JSON, in ASCII, of at most `limits.result_bytes`; `cut` names each MIME type that is not whole."""
    cut: Dict[str, int] = {}
    data: Dict[str, Any] = {}
    for mime, value in body["data"].items():
        kept, had = _fit(mime, value, limits)
        if had is not None:
            cut[mime] = had
        if kept is not None:
            data[mime] = kept
    whole = {
        "type": body["type"],
        "data": data,
        "metadata": _plain(body.get("metadata")) or {},
        "update": bool(body.get("update")),
        "cut": cut,
    }
    if body.get("display_id") is not None:
        whole["display_id"] = str(body["display_id"])[:_MIME_LIMIT]
    text = _encode(whole)
    while len(text) > limits.result_bytes and (data or whole["metadata"]):
        if data:
            # A chart stands beside a picture, and is not to drive it out.
            largest = CHART if CHART in data else max(data, key=lambda mime: len(_encode(data[mime])))
            cut[largest] = max(cut.get(largest, 0), _size(largest, data.pop(largest)))
        else:
            whole["metadata"] = {}
        text = _encode(whole)
    return text


def _fit(mime: Any, value: Any, limits: Limits) -> Tuple[Any, Optional[int]]:
    """What of *value* can be sent, or None, and the bytes it had if that is not all of it."""
    if type(mime) is not str or not 0 < len(mime) <= _MIME_LIMIT:
        return None, None
    if isinstance(value, LeftOut):
        return None, value.had
    if isinstance(value, (bytes, bytearray, memoryview)):
        fits = len(value) <= limits.result_bytes
        return (base64.b64encode(value).decode("ascii"), None) if fits else (None, len(value))
    if isinstance(value, str):
        return _fit_text(mime, str.__str__(value), limits)
    plain = _plain(value) if is_json(mime) else None
    return (None, 0) if plain is None else (plain, None)


def _fit_text(mime: str, text: str, limits: Limits) -> Tuple[Optional[str], Optional[int]]:
    if mime == "text/plain" and len(text) > limits.text_bytes // 4:
        return _middle_out(text, limits.text_bytes)
    return (text, None) if len(text) <= limits.result_bytes else (None, _size(mime, text))


def _plain(value: Any) -> Any:
    """*value* if it is JSON; with null for what has no number in JSON; None if it is something else."""
    try:
        _encode(value)
        return value
    except ValueError:
        pass
    except (TypeError, RecursionError):
        return None
    try:
        return json.loads(json.dumps(value), parse_constant=lambda _: None)
    except (ValueError, TypeError, RecursionError):
        return None


def _size(mime: str, value: Any) -> int:
    if isinstance(value, str):
        return len(value) if value.isascii() else len(value.encode("utf-8", "surrogatepass"))
    return len(_encode(value))


def _middle_out(text: str, limit: int) -> Tuple[str, Optional[int]]:
    had = _size("text/plain", text)
    if had <= limit:
        return text, None
    keep = limit * len(text) // had
    left_out = len(text) - keep
    middle = "\n... %d characters left out ...\n" % left_out
    return text[: keep // 2] + middle + text[len(text) - keep // 2 :], had
