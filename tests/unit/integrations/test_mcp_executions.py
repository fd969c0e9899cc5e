"""What a model gets to read of code that was run."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from mcp_types import CallToolResult, ImageContent, TextContent

from casemate.integrations import answers
from casemate.integrations.answers import PICTURE_BYTES, TEXT_BYTES
from casemate.integrations.mcp import executions
from casemate.sdk.code import (
    TABLE,
    CodeEnd,
    CodeOutOfMemory,
    CodeTimedOut,
    ContextDied,
    Execution,
    FileChange,
    Interrupted,
    LeftOut,
    Ok,
    Raised,
    Result,
    SandboxDied,
    error_of,
)
from casemate.sdk.results import Logs

PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(100)).decode()


def shown(data: dict[str, Any], kind: str = "display", cut: dict[str, int] | None = None) -> Result:
    return Result.from_json({"type": kind, "data": data, "cut": cut or {}})


def ran(
    *results: Result, end: CodeEnd | None = None, stdout: str = "", stderr: str = "", **more: Any
) -> CallToolResult:
    ended = end or Ok()
    ids = {"cell_id": "c", "context": "default", "offset": 9}
    settings: dict[str, Any] = {"files_changed": (), "truncated_bytes": 0, **ids, **more}
    return executions.of_execution(
        Execution(
            results,
            Logs(stdout, stderr),
            error_of(ended),
            ended,
            3,
            1.5,
            **settings,
        )
    )


def texts(result: CallToolResult) -> list[str]:
    return [block.text for block in result.content if isinstance(block, TextContent)]


def test_output_then_results_in_order() -> None:
    result = ran(
        shown({"text/plain": "first"}),
        shown({"image/png": PNG, "text/plain": "<Figure>"}),
        shown({"text/plain": "42"}, "result"),
        stdout="out\n",
        stderr="err\n",
    )
    assert texts(result) == ["out\n", "[stderr]\nerr\n", "first", "42"]
    assert isinstance(result.content[3], ImageContent)
    assert result.content[3].data == PNG
    assert not result.is_error
    assert result.structured_content["text"] == "42"
    assert result.structured_content["execution_count"] == 3


def test_nothing_is_said_to_be_nothing() -> None:
    assert texts(ran()) == ["(no output)"]


@pytest.mark.parametrize(
    ("end", "text", "kind"),
    [
        (Raised("ValueError", "no", "Traceback …\nValueError: no"), "Traceback …\nValueError: no", "error"),
        (Interrupted(True), "[end] interrupted; its variables are kept", "interrupted"),
        (CodeTimedOut(2.0, False), "[end] timed out after 2 s; its variables are lost", "timed-out"),
        (CodeOutOfMemory(), "[end] out of memory; its variables are lost", "out-of-memory"),
        (ContextDied("exit 3"), "[end] the interpreter ended (exit 3); its variables are lost", "context-died"),
        (SandboxDied("i", "x"), "[end] the sandbox ended (i: x); all its files and variables are lost", "sandbox-died"),
    ],
)  # fmt: skip
def test_each_end_is_a_result_that_says_what_is_left(end: CodeEnd, text: str, kind: str) -> None:
    result = ran(end=end, stdout="before")
    assert result.is_error
    assert texts(result) == ["before", text]
    assert result.structured_content["end"]["kind"] == kind


def test_a_table_is_a_table() -> None:
    table = {
        "columns": [{"name": "a|b", "type": "int64"}, {"name": "c", "type": "object"}],
        "rows": [[1, "x\ny"], [None, "z" * 500]],
        "shape": [1000, 7],
    }
    result = ran(shown({"text/plain": "a b\n", "text/html": "<table>", TABLE: table}, "result"))
    lines = texts(result)[0].splitlines()
    assert lines[:3] == ["| a\\|b | c |", "| --- | --- |", "| 1 | x y |"]
    assert lines[3].endswith("… |")
    assert lines[4] == "[2 of 1000 rows, 2 of 7 columns]"
    (found,) = result.structured_content["tables"]
    assert found["columns"][0] == {"name": "a|b", "type": "int64"}
    assert found["rows"][0] == [1, "x\ny"]
    assert found["shape"] == [1000, 7]


def test_a_hostile_table_is_bounded() -> None:
    row: list[Any] = [10**4000, {"a": ["b" * 10**6]}, "c" * 10**6, 1.5, True] * 100
    table = {"columns": [{"name": "n" * 10**6, "type": "t" * 10**6}] * 500, "rows": [row] * 500, "shape": [1, 1]}
    result = ran(shown({TABLE: table}), shown({TABLE: table}))
    assert sum(len(text) for text in texts(result)) < TEXT_BYTES + 1000
    assert len(json.dumps(result.structured_content)) < 8 * 2**20


def test_all_is_bounded_and_says_what_was_cut() -> None:
    results = [shown({"text/plain": "x" * 60_000}, cut={"text/html": 5_000_000}) for _ in range(5)]
    pictures = [shown({"image/png": PNG}) for _ in range(answers.PICTURES + 4)]
    result = ran(*results, *pictures, stdout="y" * 50_000, truncated_bytes=77, left_out=LeftOut(3, 999))
    said = "\n".join(texts(result))
    assert len(said) < TEXT_BYTES + 2000
    assert "77 bytes of output were cut" in said
    assert "250088 more characters" in said
    assert "text/html (5000000 bytes)" in said
    assert "3 results are left out, 999 bytes" in said
    assert len([block for block in result.content if isinstance(block, ImageContent)]) == answers.PICTURES


@pytest.mark.parametrize("data", [b"GIF89a", b"", b"\x89PNG\r\n\x1a\n" + bytes(PICTURE_BYTES)])
def test_what_is_no_picture_of_modest_size_is_not_one(data: bytes) -> None:
    result = ran(shown({"image/png": base64.b64encode(data).decode()}))
    assert texts(result) == ["[image/png: not shown]"]


def test_files_that_changed() -> None:
    changes = tuple(FileChange(f"/home/user/{n}", "created") for n in range(60))
    found = ran(files_changed=changes).structured_content["files_changed"]
    assert found[0] == {"path": "/home/user/0", "change": "created"}
    assert len(found) == executions.CHANGES


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ({"text/markdown": "# a", "text/plain": "b"}, "# a"),
        ({"text/html": "<b>"}, "<b>"),
        ({"application/json": {"a": 1}}, '{"a": 1}'),
        ({"application/pdf": "AAAA"}, "[application/pdf: not shown]"),
        ({}, "(no output)"),
    ],
)
def test_what_a_model_reads_best(data: dict[str, Any], text: str) -> None:
    assert texts(ran(shown(data))) == [text]
