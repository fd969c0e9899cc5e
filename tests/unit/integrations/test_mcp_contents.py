"""What a model gets to read."""

from __future__ import annotations

import base64

import pytest
from mcp_types import BlobResourceContents, CallToolResult, EmbeddedResource, ImageContent, TextContent

from casemate.errors import HostFull, InvalidSpec
from casemate.integrations.mcp import contents, tools
from casemate.sdk.results import End, ExecResult, Exited, FileEntry, OutOfMemory, Signaled, TimedOut

PNG = b"\x89PNG\r\n\x1a\n" + bytes(100)


def ran(end: End, stdout: bytes = b"", stderr: bytes = b"", cut: int = 0) -> CallToolResult:
    return contents.of_command(ExecResult(end, stdout, stderr, cut, 1.0, None, None))


def text_of(result: CallToolResult) -> str:
    return "\n".join(block.text for block in result.content if isinstance(block, TextContent))


@pytest.mark.parametrize(
    ("end", "text"),
    [
        (Exited(3), "[end] exit status 3"),
        (Signaled(9), "[end] ended by signal 9"),
        (TimedOut(2.5), "[end] timed out after 2.5 s and was killed"),
        (OutOfMemory(), "[end] killed: the sandbox is out of memory"),
    ],
)
def test_a_command_that_failed(end: End, text: str) -> None:
    result = ran(end, b"out\n", b"err\n")
    assert result.is_error
    assert text_of(result) == f"out\n\n[stderr]\nerr\n\n{text}"


def test_a_command_that_went_well() -> None:
    assert (text_of(ran(Exited(0), b"out")), ran(Exited(0)).is_error) == ("out", False)
    assert text_of(ran(Exited(0))) == "(no output)"


def test_what_was_cut_is_said() -> None:
    assert "12345 bytes of output were cut" in text_of(ran(Exited(0), b"out", cut=12345))


def test_an_error_has_its_code() -> None:
    result = contents.of_error(HostFull("no room", hint="wait"))
    assert result.is_error
    assert text_of(result) == "error (host-full): no room — wait"
    assert result.structured_content == {"error": {"code": "host-full", "message": "no room — wait"}}


def test_a_picture_is_a_picture() -> None:
    result = contents.of_file("a.png", PNG, offset=0, size=len(PNG), limit=10)
    picture = result.content[-1]
    assert isinstance(picture, ImageContent)
    assert (base64.b64decode(picture.data), picture.mime_type) == (PNG, "image/png")


def test_a_part_of_a_picture_is_bytes() -> None:
    result = contents.of_file("a.png", PNG[:50], offset=0, size=len(PNG), limit=10)
    assert isinstance(result.content[0], EmbeddedResource)
    resource = result.content[0].resource
    assert isinstance(resource, BlobResourceContents)
    assert base64.b64decode(resource.blob) == PNG[:10]
    assert resource.uri == "file:///home/user/a.png"


def test_a_text_is_read_in_parts_that_cut_through_no_character() -> None:
    data, offset, found = "aé€😀z".encode() * 5, 0, ""
    for limit in (4, 5, 6, 7, 8) * 20:
        result = contents.of_file("t", data[offset : offset + limit], offset=offset, size=len(data), limit=limit)
        assert isinstance(result.content[0], TextContent)
        found += result.content[0].text
        offset = result.structured_content["next_offset"]
        if offset is None:
            break
        assert f"offset={offset}" in text_of(result)
    assert found.encode() == data


def test_an_empty_file_is_an_empty_text() -> None:
    assert text_of(contents.of_file("t", b"", offset=0, size=0, limit=10)) == ""


def test_a_folder_is_bounded() -> None:
    entries = [FileEntry(f"f{n}", f"/f{n}", "file", n, 0o644, 0, 0, 0) for n in range(contents.ENTRIES + 7)]
    result = contents.of_folder(".", entries)
    assert "[7 more entries are left out]" in text_of(result)
    assert len(result.structured_content["entries"]) == contents.ENTRIES


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("run_code", {}),
        ("run_code", {"code": 1}),
        ("run_code", {"code": "1", "timeout_s": 0}),
        ("run_code", {"code": "1", "timeout_s": 1e9}),
        ("run_code", {"code": "1", "timeout_s": True}),
        ("run_code", {"code": "1", "other": 1}),
        ("run_command", {"command": ""}),
        ("read_file", {"path": "a", "offset": -1}),
        ("read_file", {"path": "a" * 5000}),
    ],
)
def test_arguments_are_checked(name: str, given: dict[str, object]) -> None:
    with pytest.raises(InvalidSpec, match=name):
        tools.check(tools.TOOLS[name][0], given)


@pytest.mark.parametrize(
    ("given", "data"), [({"text": "ü"}, "ü".encode()), ({"base64": "AP8="}, b"\x00\xff"), ({"base64": ""}, b"")]
)
def test_what_is_written(given: dict[str, str], data: bytes) -> None:
    assert tools._data_of(given) == data


@pytest.mark.parametrize("word", ["A", "A===", "AP8=\n", "ü"])
def test_what_is_no_base64(word: str) -> None:
    with pytest.raises(InvalidSpec):
        tools._data_of({"base64": word})


def test_half_a_character_is_no_text() -> None:
    with pytest.raises(InvalidSpec):
        tools._data_of({"text": "\ud800"})
