"""What a client gets back: text for a model, pictures as pictures, and the same once more as data. All bounded."""

from __future__ import annotations

import base64
import codecs
from collections.abc import Sequence
from typing import Any, assert_never
from urllib.parse import quote

from mcp_types import BlobResourceContents, CallToolResult, ContentBlock, EmbeddedResource, ImageContent, TextContent

from casemate.errors import CasemateError
from casemate.integrations.answers import headed, picture_kind
from casemate.sdk.results import End, ExecResult, Exited, FileEntry, OutOfMemory, Signaled, TimedOut

ENTRIES = 1000  # of a folder


def said(text: str, data: dict[str, Any] | None = None, *, is_error: bool = False) -> CallToolResult:
    return CallToolResult(content=[TextContent(text=text)], structured_content=data, is_error=is_error)


def of_error(error: CasemateError) -> CallToolResult:
    """What kept a call from being done, for the model to read: the code is what a program would look at."""
    return said(f"error ({error.code}): {error}", {"error": {"code": error.code, "message": str(error)}}, is_error=True)


def lost(reason: str) -> TextContent:
    return TextContent(
        text=f"[the sandbox of this session has ended ({reason}): its files and variables are lost; the next call "
        "starts a new one]"
    )


def of_command(result: ExecResult) -> CallToolResult:
    how, failed = _ended(result.end)
    parts = [part for part in (result.stdout, headed("stderr", result.stderr), headed("end", how)) if part]
    if result.truncated_bytes:
        parts.append(f"[{result.truncated_bytes} bytes of output were cut out of its middle]")
    return said("\n".join(parts) or "(no output)", result.to_json(), is_error=failed)


def _ended(end: End) -> tuple[str, bool]:
    match end:
        case Exited(code):
            return (f"exit status {code}" if code else ""), code != 0
        case Signaled(number):
            return f"ended by signal {number}", True
        case TimedOut(after_s):
            return f"timed out after {after_s:g} s and was killed", True
        case OutOfMemory():
            return "killed: the sandbox is out of memory", True
        case _:
            assert_never(end)


def of_file(path: str, data: bytes, *, offset: int, size: int, limit: int) -> CallToolResult:
    """*size* is the file's; a whole picture is one, of anything else *limit* bytes from *offset* on."""
    if offset == 0 and len(data) == size and (kind := picture_kind(data)):
        picture = ImageContent(data=base64.b64encode(data).decode(), mime_type=kind)
        note = TextContent(text=f"{path}: {kind}, {size} bytes")
        return CallToolResult(content=[note, picture], structured_content={"path": path, "size": size, "mime": kind})
    whole = offset + min(len(data), limit) >= size
    block, taken, encoding = _block_of(path, data[:limit], whole=whole)
    end = offset + taken
    following = None if whole else end
    about = {"path": path, "size": size, "offset": offset, "encoding": encoding, "next_offset": following}
    content: list[ContentBlock] = [block]
    if following is not None:
        content.append(TextContent(text=f"[bytes {offset} to {end} of {size}; go on with offset={end}]"))
    return CallToolResult(content=content, structured_content=about)


def _block_of(path: str, data: bytes, *, whole: bool) -> tuple[ContentBlock, int, str]:
    """A block, how many of the bytes are in it, and how; a character that the end cuts through is left for the next."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        text = decoder.decode(data, final=whole)
        return TextContent(text=text), len(data) - len(decoder.getstate()[0]), "text"
    except UnicodeDecodeError:
        blob = base64.b64encode(data).decode()
        uri = "file://" + quote(path if path.startswith("/") else f"/home/user/{path}")
        resource = BlobResourceContents(uri=uri, mime_type="application/octet-stream", blob=blob)
        return EmbeddedResource(resource=resource), len(data), "base64"


def of_folder(path: str, entries: Sequence[FileEntry]) -> CallToolResult:
    shown = entries[:ENTRIES]
    lines = [f"{entry.type:7} {entry.size:>12} {entry.name}" for entry in shown]
    left_out = len(entries) - len(shown)
    if left_out:
        lines.append(f"[{left_out} more entries are left out]")
    data = {
        "path": path,
        "entries": [{"name": entry.name, "type": entry.type, "size": entry.size} for entry in shown],
        "left_out": left_out,
    }
    return said("\n".join(lines) or "(empty)", data)
