"""What a client may call, and what each call does. Arguments are checked against the schema that a client is shown."""

from __future__ import annotations

import base64
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from jsonschema import Draft202012Validator
from mcp_types import CallToolResult, Tool, ToolAnnotations

from casemate.errors import InvalidSpec
from casemate.integrations import answers
from casemate.integrations.mcp import contents, executions
from casemate.integrations.mcp.progress import Teller
from casemate.sdk import AsyncSandbox

DEFAULT_S = 60.0
MOST_S = 3600.0
ANSWER_S = 60.0  # beside what the program itself may take: for a wake-up, the grace of a time-out, a file
LIMITS = {
    "result_bytes": 8 * 2**20,
    "results": 100,
    "text_bytes": 100_000,
    "table_rows": 50,
}  # no more of it would be shown
READ_BYTES = 256 * 1024  # of a file in one answer

INSTRUCTIONS = (
    "Runs code and commands in a Linux microVM of the session's own (Debian, Python with numpy, pandas, matplotlib; no "
    "network). run_code keeps variables between calls, files stay until the session ends, and then everything is "
    "gone. Relative paths begin at /home/user."
)


@dataclass(frozen=True, slots=True)
class Call:
    """One call's surroundings: the sandbox it is for, and whom to tell about its progress."""

    sandbox: AsyncSandbox
    tell: Teller


Run = Callable[[Call, Mapping[str, Any]], Awaitable[CallToolResult]]


def _schema(required: list[str], **properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _text(description: str, **more: Any) -> dict[str, Any]:
    return {"type": "string", "description": description, **more}


TIMEOUT = {
    "type": "number",
    "exclusiveMinimum": 0,
    "maximum": MOST_S,
    "description": f"End it after so many seconds; {DEFAULT_S:g}.",
}
PATH = _text("Absolute, or relative to /home/user.", minLength=1, maxLength=4096)

RUN_CODE = Tool(
    name="run_code",
    title="Run code",
    description="Run code in an interpreter that stays alive: variables, imports and open files are there in the next "
    "call. Returns what it printed, the value of the last expression, tables and pictures (matplotlib figures come "
    "back as images). An exception, a time-out or a crash is the tool's result.",
    input_schema=_schema(
        ["code"],
        code=_text("The code."),
        context=_text("The id of another context than the default one.", minLength=1, maxLength=128),
        language=_text("python (the default), bash, javascript, or jupyter:KERNEL.", minLength=1, maxLength=64),
        timeout_s=TIMEOUT,
    ),
    annotations=ToolAnnotations(read_only_hint=False, destructive_hint=True, open_world_hint=False),
)
RUN_COMMAND = Tool(
    name="run_command",
    title="Run a command",
    description="Run a command through /bin/sh, in a process of its own. Returns stdout, stderr and the exit status.",
    input_schema=_schema(
        ["command"], command=_text("The command line.", minLength=1), timeout_s=TIMEOUT, cwd=_text("The folder.")
    ),
    annotations=ToolAnnotations(read_only_hint=False, destructive_hint=True, open_world_hint=False),
)
READ_FILE = Tool(
    name="read_file",
    title="Read a file",
    description=f"Read a file: text as text, PNG and JPEG as a picture, anything else in base64. At most "
    f"{READ_BYTES // 1024} KiB of text at a time; the answer says how to go on.",
    input_schema=_schema(
        ["path"],
        path=PATH,
        offset={"type": "integer", "minimum": 0, "description": "From this byte on; 0."},
    ),
    annotations=ToolAnnotations(read_only_hint=True, open_world_hint=False),
)
WRITE_FILE = Tool(
    name="write_file",
    title="Write a file",
    description="Replace a file, or make it and the folders above it. Give either text or base64.",
    input_schema=_schema(
        ["path"],
        path=PATH,
        text=_text("What it is to hold, as text (UTF-8)."),
        base64=_text("What it is to hold, in base64."),
    ),
    annotations=ToolAnnotations(
        read_only_hint=False, destructive_hint=True, idempotent_hint=True, open_world_hint=False
    ),
)
LIST_FILES = Tool(
    name="list_files",
    title="List a folder",
    description="The entries of a folder: kind, size and name.",
    input_schema=_schema([], path=_text("The folder; /home/user.", minLength=1, maxLength=4096)),
    annotations=ToolAnnotations(read_only_hint=True, open_world_hint=False),
)


async def run_command(call: Call, given: Mapping[str, Any]) -> CallToolResult:
    result = await call.sandbox.commands.run(
        given["command"],
        cwd=given.get("cwd"),
        timeout_s=timeout_of(given),
        on_stdout=call.tell.output,
        on_stderr=call.tell.output,
        max_output_bytes=answers.TEXT_BYTES,
    )
    return contents.of_command(result)


async def run_code(call: Call, given: Mapping[str, Any]) -> CallToolResult:
    execution = await call.sandbox.run_code(
        given["code"],
        context=given.get("context"),
        language=given.get("language"),
        timeout_s=timeout_of(given),
        on_stdout=call.tell.output,
        on_stderr=call.tell.output,
        limits=LIMITS,
        max_output_bytes=answers.TEXT_BYTES,
    )
    return executions.of_execution(execution)


async def read_file(call: Call, given: Mapping[str, Any]) -> CallToolResult:
    path, offset = given["path"], given.get("offset", 0)
    size = (await call.sandbox.files.stat(path, follow=True)).size
    limit = answers.PICTURE_BYTES if offset == 0 and size <= answers.PICTURE_BYTES else READ_BYTES
    data = await call.sandbox.files.read(path, offset=offset, length=limit)
    return contents.of_file(path, data, offset=offset, size=size, limit=READ_BYTES)


async def write_file(call: Call, given: Mapping[str, Any]) -> CallToolResult:
    if ("text" in given) == ("base64" in given):
        raise InvalidSpec("write_file takes either text or base64", hint="give one of the two")
    written = await call.sandbox.files.write(given["path"], _data_of(given))
    return contents.said(f"{given['path']}: {written} bytes written", {"path": given["path"], "size": written})


async def list_files(call: Call, given: Mapping[str, Any]) -> CallToolResult:
    path = given.get("path", ".")
    return contents.of_folder(path, await call.sandbox.files.list(path))


TOOLS: dict[str, tuple[Tool, Run]] = {
    tool.name: (tool, run)
    for tool, run in (
        (RUN_CODE, run_code),
        (RUN_COMMAND, run_command),
        (READ_FILE, read_file),
        (WRITE_FILE, write_file),
        (LIST_FILES, list_files),
    )
}


def check(tool: Tool, given: Mapping[str, Any]) -> None:
    """Raises InvalidSpec for arguments that the tool's schema does not allow."""
    for error in Draft202012Validator(tool.input_schema).iter_errors(dict(given)):
        where = ".".join(str(step) for step in error.absolute_path)
        raise InvalidSpec(
            f"{tool.name}{': ' + where if where else ''}: {error.message[:300]}", hint="see the tool's input schema"
        )


def timeout_of(given: Mapping[str, Any]) -> float:
    return float(given.get("timeout_s", DEFAULT_S))


def _data_of(given: Mapping[str, Any]) -> bytes:
    try:
        return str(given["text"]).encode() if "text" in given else base64.b64decode(given["base64"], validate=True)
    except ValueError as error:  # binascii's, or half a surrogate pair
        raise InvalidSpec(
            f"write_file: {error}", hint="text is Unicode, base64 has padding and no line breaks"
        ) from error
