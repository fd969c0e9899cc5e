"""A guest's text on a terminal of ours: it may be coloured, and it may steer nothing."""

from __future__ import annotations

import codecs
import re

RESET = "\x1b[0m"
_COLOUR = re.compile(r"\x1b\[[0-9;:]{0,32}m")
_MAY_BECOME_ONE = re.compile(r"\x1b(\[[0-9;:]{0,32})?\Z")
_STEERING = re.compile(r"\x1b(?:[\]P^_X][^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?|\[[0-?]*[ -/]*[@-~]?|[ -/]*[0-~])?")
KEPT = frozenset("\n\t\r\u200c\u200d")  # with the two that join and divide letters, and emoji


def harmless(text: str, *, colours: bool = False) -> str:
    """*text* without what moves a cursor, sets a title, asks for an answer or hides what is written.

    Sequences go as a whole; other characters that cannot be printed become U+FFFD. Carriage returns stay: progress bars
    are made of them, and they reach no further than their own line.
    """
    parts, at = [], 0
    for found in _STEERING.finditer(text):
        parts.append(_printable(text[at : found.start()]))
        if colours and _COLOUR.fullmatch(found[0]):
            parts.append(found[0])
        at = found.end()
    parts.append(_printable(text[at:]))
    return "".join(parts)


def _printable(text: str) -> str:
    return text if text.isprintable() else "".join(sign if _shows(sign) else "\ufffd" for sign in text)


def _shows(sign: str) -> bool:
    return sign in KEPT or sign.isprintable() or (sign.isspace() and sign >= "\xa0")


class Stream:
    """Bytes of one stream, in pieces of any size, as text that is harmless."""

    def __init__(self, *, colours: bool) -> None:
        self._colours = colours
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self._coloured = False

    def feed(self, data: bytes) -> str:
        text = self._held + self._decoder.decode(data)
        self._held = ""
        if begun := _MAY_BECOME_ONE.search(text):
            text, self._held = text[: begun.start()], begun[0]
        shown = harmless(text, colours=self._colours)
        self._coloured = self._coloured or "\x1b" in shown
        return shown

    def end(self) -> str:
        """What was held back, and an end to any colour."""
        rest = harmless(self._held + self._decoder.decode(b"", final=True), colours=False)
        self._held = ""
        return rest + (RESET if self._coloured else "")
