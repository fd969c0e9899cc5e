"""Where a cell ends: in what is typed, and in what comes through a pipe."""

from __future__ import annotations

import codeop
import re
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

_BREAK = re.compile(r"^(?:#|//)\s*%%")
_OPEN, _CLOSED = frozenset("([{"), frozenset(")]}")
LEAVING = frozenset({"exit", "quit", "exit()", "quit()"})


def piped(lines: Iterable[str]) -> Iterator[str]:
    """The cells of a text, divided by lines that begin with ``# %%`` (or ``// %%``), as editors have it."""
    held: list[str] = []
    for line in lines:
        if _BREAK.match(line):
            if cell := _whole(held):
                yield cell
            held = []
        else:
            held.append(line)
    if cell := _whole(held):
        yield cell


def _whole(lines: list[str]) -> str:
    text = "".join(lines)
    return text if text.strip() else ""


def complete(text: str, language: str) -> bool:
    """Whether Enter runs it; otherwise it begins another line. An empty line ends what has no brackets open."""
    if not text.strip():
        return True
    before, _, last = text.rpartition("\n")
    ended = bool(before) and not last.strip()
    return _complete_python(text, ended) if language == "python" else ended or _complete_other(text, language)


def _complete_python(text: str, ended: bool) -> bool:
    if text.lstrip().startswith("%%"):
        return ended  # a cell magic takes all that follows
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return codeop.compile_command(text.rstrip() + "\n" if ended else text, "<cell>", "single") is not None
    except (SyntaxError, ValueError, OverflowError, MemoryError, RecursionError):
        return True  # the guest's own Python, and its IPython, say what is wrong, if anything is


def _complete_other(text: str, language: str) -> bool:
    if text.endswith("\\"):
        return False
    lexer = lexer_of(language)
    if lexer is None:
        return True
    from pygments.token import Comment, String

    depth = 0
    for kind, piece in lexer.get_tokens(text):
        if kind not in String and kind not in Comment:
            depth += sum(sign in _OPEN for sign in piece) - sum(sign in _CLOSED for sign in piece)
    return depth <= 0


def lexer_of(language: str) -> Any:
    """Pygments' lexer for it; None where it has none."""
    from pygments.lexers import get_lexer_by_name
    from pygments.util import ClassNotFound

    name = language.partition(":")[2] or language
    try:
        return get_lexer_by_name(name)
    except ClassNotFound:
        return None
