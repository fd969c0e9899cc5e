"""What code that was run comes back as: text in the order of a notebook, pictures, and all of it once more as data."""

from __future__ import annotations

import base64
from typing import Any, assert_never

from mcp_types import CallToolResult, ContentBlock, ImageContent, TextContent

from casemate.integrations.answers import CELL_CHARS, COLUMNS, ROWS, TEXT_BYTES, Part, cut, parts_of, shortened
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
    SandboxDied,
    Table,
)

TABLES = 4
CHANGES = 50


def of_execution(execution: Execution) -> CallToolResult:
    content = [_block_of(part) for part in parts_of(execution)]
    return CallToolResult(content=content, structured_content=_data_of(execution), is_error=not execution.ok)


def _block_of(part: Part) -> ContentBlock:
    if isinstance(part, str):
        return TextContent(text=part)
    return ImageContent(data=base64.b64encode(part.data).decode(), mime_type=part.mime)


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
        "columns": [{"name": cut(column.name), "type": cut(column.type)} for column in table.columns[:COLUMNS]],
        "rows": [[_value(value) for value in row[:COLUMNS]] for row in table.rows[:ROWS]],
        "shape": list(table.shape),
    }


def _value(value: Any) -> Any:
    """A cell as data; what is no plain value of bounded size becomes a text that is."""
    return value if value is None or isinstance(value, bool | float) else _whole(value)


def _whole(value: Any) -> Any:
    return value if isinstance(value, int) and abs(value) < 2**63 else cut(str(value), CELL_CHARS)


def _change_data(change: FileChange) -> dict[str, str]:
    return {"path": change.path, "change": change.change}


def _end_data(end: CodeEnd) -> dict[str, Any]:  # noqa: PLR0911 - one for each
    match end:
        case Ok():
            return {"kind": "ok"}
        case Raised(name, value, traceback):
            return {"kind": "error", "name": cut(name), "value": cut(value), "traceback": shortened(traceback)}
        case Interrupted(kept):
            return {"kind": "interrupted", "state_kept": kept}
        case CodeTimedOut(after_s, kept):
            return {"kind": "timed-out", "after_s": after_s, "state_kept": kept}
        case CodeOutOfMemory():
            return {"kind": "out-of-memory"}
        case ContextDied(reason):
            return {"kind": "context-died", "reason": cut(reason)}
        case SandboxDied(code, message):
            return {"kind": "sandbox-died", "reason": {"code": code, "message": message}}
        case _:
            assert_never(end)
