"""How cells end: what a context says of it, checked and cut, and what the agent knows itself."""

from __future__ import annotations

import json
import os
from typing import Any

from casemate.guest.peer import PeerLied

End = dict[str, Any]
_TEXT_BYTES = {"name": 400, "value": 9_000, "traceback": 34_000}  # as JSON; with the rest one frame
_JSON_GROWTH = 12  # the most bytes of JSON that one character becomes
COUNT_AT_MOST = 1 << 53  # the host takes no larger number than 1 << 63


def died(reason: str) -> End:
    return {"kind": "context-died", "reason": reason}


def reason_of(status: int) -> str:
    """In words, of a wait status."""
    code = os.waitstatus_to_exitcode(status)
    return f"killed by signal {-code}" if code < 0 else f"exited with {code}"


def checked(found: object) -> End:
    """A context's end, rebuilt from what was expected of it. Raises PeerLied."""
    if not isinstance(found, dict):
        raise PeerLied("an end that is no object")
    kind = found.get("kind")
    if kind == "ok":
        return {"kind": "ok"}
    if kind == "interrupted":
        return {"kind": "interrupted", "state_kept": True}
    if kind != "error":
        raise PeerLied("an end of a kind there is not")
    return {"kind": "error"} | {name: _text(found, name, most) for name, most in _TEXT_BYTES.items()}


def count(found: object) -> int:
    """A number of things, as a context counts them. Raises PeerLied."""
    if type(found) is not int or not 0 <= found < COUNT_AT_MOST:
        raise PeerLied("a count that is none")
    return found


def brief(end: End) -> End:
    """*end* for a list of many."""
    if end["kind"] != "error":
        return end
    return {"kind": "error", "name": cut(end["name"], 200), "value": cut(end["value"], 400), "traceback": ""}


def cut(text: str, most: int) -> str:
    """*text*, its middle left out where it would take more than *most* bytes as JSON."""
    keep = len(text)
    shown = text
    while len(shown) * _JSON_GROWTH > most and len(json.dumps(shown)) > most:
        keep = min(keep * 2 // 3, most)
        shown = f"{text[: keep // 2]}\n... {len(text) - keep} characters left out ...\n{text[len(text) - keep // 2 :]}"
    return shown


def _text(found: dict[str, Any], name: str, most: int) -> str:
    text = found.get(name)
    if not isinstance(text, str):
        raise PeerLied(f"an end whose {name} is no text")
    return cut(text, most)
