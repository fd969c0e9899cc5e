"""What code that was run comes back as: text in the order of a notebook, pictures, and all of it once more as data."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any, assert_never

from mcp_types import CallToolResult, ContentBlock, ImageContent, TextContent

from casemate.integrations.mcp.contents import PICTURE_BYTES, TEXT_BYTES, headed, picture_kind
from casemate.sdk.code import (
    CodeEnd,
    CodeOutOfMemory,
    CodeTimedOut,
    ContextDied,
    Execution,
    FileChange,
    Interrupted,
    Ok,
    Raised,
    Result,
    SandboxDied,
    Table,
)

PICTURES, TABLES = 16, 4
ROWS, COLUMNS, CELL_CHARS = 50, 100, 200
WORDS = 1000  # of a name, a reason
CUTS = 10
CHANGES = 50
LOST = "its variables are lost"


def of_execution(execution: Execution) -> CallToolResult:
    room = _Room(TEXT_BYTES)
    content: list[ContentBlock] = []
    for text in (execution.logs.stdout, headed("stderr", execution.logs.stderr)):
        content += room.block(text)
    pictures = 0
    for result in execution.results:
        picture = _picture_of(result)
        if picture is not None and pictures < PICTURES:
            pictures += 1
            content.append(picture)
        else:
            content += room.block(_text_of(result))
    notes = [*_notes(execution, room.left_out), how(execution.end)]
    content += [TextContent(text=note) for note in notes if note]
    if not content:
        content.append(TextContent(text="(no output)"))
    return CallToolResult(content=content, structured_content=_data_of(execution), is_error=not execution.ok)


class _Room:
    """How much more text fits."""

    def __init__(self, size: int) -> None:
        self._left = size
        self.left_out = 0

    def block(self, text: str) -> Iterator[TextContent]:
        part = text[: self._left]
        self._left -= len(part)
        self.left_out += len(text) - len(part)
        if part:
            yield TextContent(text=part)


def how(end: CodeEnd) -> str:  # noqa: PLR0911 - one for each
    """What a model has to know of an end, and whether its variables are still there."""
    match end:
        case Ok():
            return ""
        case Raised(name, value, traceback):
            return _shortened(traceback or f"{name}: {value}")
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


def _shortened(traceback: str) -> str:
    """The end of a traceback says most."""
    limit = TEXT_BYTES // 4
    return traceback if len(traceback) <= limit else f"[{len(traceback) - limit} characters]…{traceback[-limit:]}"


def _picture_of(result: Result) -> ImageContent | None:
    for mime, data in (("image/png", result.png), ("image/jpeg", result.jpeg)):
        if data is not None and len(data) <= PICTURE_BYTES and picture_kind(data) == mime:
            return ImageContent(data=base64.b64encode(data).decode(), mime_type=mime)
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
    return " ".join(_cut("" if value is None else str(value), CELL_CHARS).split()).replace("|", "\\|")


def _cut(text: str, limit: int = WORDS) -> str:
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


def _data_of(execution: Execution) -> dict[str, Any]:
    tables = [result.table for result in execution.results if result.table is not None]
    return {
        "end": _end_data(execution.end),
        "stdout": execution.logs.stdout,
        "stderr": execution.logs.stderr,
        "text": (execution.text or "")[:TEXT_BYTES] or None,
        "tables": [_table_data(table) for table in tables[:TABLES]],
        "context": execution.context,
        "execution_count": execution.execution_count,
        "duration_ms": execution.duration_ms,
        "files_changed": [_change_data(change) for change in execution.files_changed[:CHANGES]],
        "truncated_bytes": execution.truncated_bytes,
    }


def _table_data(table: Table) -> dict[str, Any]:
    return {
        "columns": [{"name": _cut(column.name), "type": _cut(column.type)} for column in table.columns[:COLUMNS]],
        "rows": [[_value(value) for value in row[:COLUMNS]] for row in table.rows[:ROWS]],
        "shape": list(table.shape),
    }


def _value(value: Any) -> Any:
    """A cell as data; what is no plain value of bounded size becomes a text that is."""
    return value if value is None or isinstance(value, bool | float) else _whole(value)


def _whole(value: Any) -> Any:
    return value if isinstance(value, int) and abs(value) < 2**63 else _cut(str(value), CELL_CHARS)


def _change_data(change: FileChange) -> dict[str, str]:
    return {"path": change.path, "change": change.change}


def _end_data(end: CodeEnd) -> dict[str, Any]:  # noqa: PLR0911 - one for each
    match end:
        case Ok():
            return {"kind": "ok"}
        case Raised(name, value, traceback):
            return {"kind": "error", "name": _cut(name), "value": _cut(value), "traceback": _shortened(traceback)}
        case Interrupted(kept):
            return {"kind": "interrupted", "state_kept": kept}
        case CodeTimedOut(after_s, kept):
            return {"kind": "timed-out", "after_s": after_s, "state_kept": kept}
        case CodeOutOfMemory():
            return {"kind": "out-of-memory"}
        case ContextDied(reason):
            return {"kind": "context-died", "reason": _cut(reason)}
        case SandboxDied(code, message):
            return {"kind": "sandbox-died", "reason": {"code": code, "message": message}}
        case _:
            assert_never(end)
