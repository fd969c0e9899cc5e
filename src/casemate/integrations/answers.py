"""What a model is told of a cell: text in the order of a notebook, and pictures. All bounded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, assert_never

from casemate.sdk.code import (
    CodeEnd,
    CodeOutOfMemory,
    CodeTimedOut,
    ContextDied,
    Execution,
    Interrupted,
    Ok,
    Raised,
    Result,
    SandboxDied,
    Table,
)

TEXT_BYTES = 100_000  # of one answer: some 25,000 tokens
PICTURE_BYTES = 5 * 2**20  # of one picture
PICTURES = 16
ROWS, COLUMNS, CELL_CHARS = 50, 100, 200
WORDS = 1000  # of a name, a reason
CUTS = 10
LOST = "its variables are lost"
PNG, JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"


@dataclass(frozen=True, slots=True)
class Picture:
    """*mime* is image/png or image/jpeg, and the data begins as such a picture does."""

    mime: str
    data: bytes = field(repr=False)


Part = str | Picture


def parts_of(execution: Execution) -> list[Part]:
    """At least one; no text is empty."""
    room = _Room(TEXT_BYTES)
    parts: list[Part] = []
    for text in (execution.logs.stdout, headed("stderr", execution.logs.stderr)):
        parts += room.taken(text)
    pictures = 0
    for result in execution.results:
        picture = _picture_of(result)
        if picture is not None and pictures < PICTURES:
            pictures += 1
            parts.append(picture)
        else:
            parts += room.taken(_text_of(result))
    parts += [note for note in (*_notes(execution, room.left_out), how(execution.end)) if note]
    return parts or ["(no output)"]


def text_of(parts: list[Part]) -> str:
    """For who shows a model no pictures: what stands for one says what it was."""
    return "\n".join(part if isinstance(part, str) else f"[{part.mime}: not shown]" for part in parts)


def headed(head: str, text: str) -> str:
    return f"[{head}]\n{text}" if text and "\n" in text else f"[{head}] {text}" if text else ""


def picture_kind(data: bytes) -> str | None:
    if data.startswith(PNG):
        return "image/png"
    return "image/jpeg" if data.startswith(JPEG) else None


class _Room:
    """How much more text fits."""

    def __init__(self, size: int) -> None:
        self._left = size
        self.left_out = 0

    def taken(self, text: str) -> Iterator[str]:
        part = text[: self._left]
        self._left -= len(part)
        self.left_out += len(text) - len(part)
        if part:
            yield part


def how(end: CodeEnd) -> str:  # noqa: PLR0911 - one for each
    """What a model has to know of an end, and whether its variables are still there."""
    match end:
        case Ok():
            return ""
        case Raised(name, value, traceback):
            return shortened(traceback or f"{name}: {value}")
        case Interrupted(kept):
            return f"[end] interrupted; {_state(kept)}"
        case CodeTimedOut(after_s, kept):
            return f"[end] timed out after {after_s:g} s; {_state(kept)}"
        case CodeOutOfMemory():
            return f"[end] out of memory; {LOST}"
        case ContextDied(reason):
            return f"[end] the interpreter ended ({reason}); {LOST}"
        case SandboxDied(code, message):
            return f"[end] the sandbox ended ({code}: {message}); all its files and variables are lost"
        case _:
            assert_never(end)


def _state(kept: bool) -> str:
    return "its variables are kept" if kept else LOST


def shortened(traceback: str) -> str:
    """The end of a traceback says most."""
    limit = TEXT_BYTES // 4
    return traceback if len(traceback) <= limit else f"[{len(traceback) - limit} characters]…{traceback[-limit:]}"


def _picture_of(result: Result) -> Picture | None:
    for mime, data in (("image/png", result.png), ("image/jpeg", result.jpeg)):
        if data is not None and len(data) <= PICTURE_BYTES and picture_kind(data) == mime:
            return Picture(mime, data)
    return None


def _text_of(result: Result) -> str:
    """In the form that a model reads best; what there is beside a picture is what stands for it."""
    if (table := result.table) is not None:
        return markdown(table)
    for text in (result.markdown, result.text, result.latex, result.html):
        if text is not None:
            return text
    if result.json is not None:
        return json.dumps(result.json, ensure_ascii=False)
    kinds = ", ".join(sorted(result.data))
    return f"[{kinds}: not shown]" if kinds else ""


def markdown(table: Table) -> str:
    names = [column.name for column in table.columns[:COLUMNS]]
    lines = [_line(names), _line(["---"] * len(names)), *(_line(row[:COLUMNS]) for row in table.rows[:ROWS])]
    (rows, columns), shown = table.shape, min(len(table.rows), ROWS)
    if rows > shown or columns > len(names):
        lines.append(f"[{shown} of {rows} rows, {len(names)} of {columns} columns]")
    return "\n".join(lines)


def _line(values: Any) -> str:
    return "| " + " | ".join(_cell(value) for value in values) + " |"


def _cell(value: Any) -> str:
    return " ".join(cut("" if value is None else str(value), CELL_CHARS).split()).replace("|", "\\|")


def cut(text: str, limit: int = WORDS) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _notes(execution: Execution, left_out: int) -> Iterator[str]:
    if execution.truncated_bytes:
        yield f"[{execution.truncated_bytes} bytes of output were cut out of its middle]"
    if left_out:
        yield f"[{left_out} more characters of output and results are left out]"
    cuts = [f"{mime} ({size} bytes)" for result in execution.results for mime, size in result.cut.items()]
    if cuts:
        yield f"[cut or left out: {', '.join(cuts[:CUTS])}{' …' if len(cuts) > CUTS else ''}]"
    if execution.left_out.results:
        yield f"[{execution.left_out.results} results are left out, {execution.left_out.result_bytes} bytes]"
