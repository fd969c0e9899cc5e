"""Who may come in over HTTP: a real server on a socket of its own, and no sandbox behind it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import anyio
import httpx
import pytest
from mcp import Client, MCPError

from casemate.errors import HostError, InvalidSpec, ToolMissing
from casemate.integrations.mcp import require
from casemate.integrations.mcp.http import Listen, _bound, is_loopback

KEY = "0123456789abcdef"
HEADERS = {"accept": "application/json, text/event-stream"}
HELLO = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "t", "version": "0"}},
}


@contextmanager
def serving(*words: str, key: str = "") -> Iterator[str]:
    argv = [sys.executable, "-m", "casemate.cli", "mcp", "--http", "127.0.0.1:0", *words]
    env = os.environ | {"CASEMATE_MCP_KEY": key, "CASEMATE_URL": "unix:///nowhere/daemon.sock"}
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=env)
    try:
        assert process.stdout
        yield process.stdout.readline().decode().strip()
    finally:
        process.terminate()
        try:
            assert process.wait(20) in (0, -15)
        finally:
            process.kill()
            process.communicate()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving() as url:
        yield url


def posted(url: str, body: object = HELLO, **headers: str) -> httpx.Response:
    return httpx.post(url, json=body, headers=HEADERS | headers, timeout=20)


def test_a_program_of_this_machine_may(url: str) -> None:
    answer = posted(url)
    assert answer.status_code == 200
    assert answer.headers["mcp-session-id"]


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost.evil:1", ""])
def test_another_name_leads_nowhere(url: str, host: str) -> None:
    assert posted(url, host=host).status_code in (400, 421)


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://localhost.evil.example:80", "file://"])
def test_a_web_page_may_not(url: str, origin: str) -> None:
    assert posted(url, origin=origin).status_code == 403


def test_a_page_of_this_machine_may(url: str) -> None:
    assert posted(url, origin="http://localhost:3000").status_code == 200


def test_no_other_path(url: str) -> None:
    assert posted(url.replace("/mcp", "/")).status_code == 404


def test_an_unknown_session_is_not_found(url: str) -> None:
    listed = {"jsonrpc": "2.0", "id": 2, "method": "tools/list"}
    assert posted(url, listed, **{"mcp-session-id": "0" * 32}).status_code == 404


def test_a_session_that_was_ended_is_not_found(url: str) -> None:
    session = {"mcp-session-id": posted(url).headers["mcp-session-id"]}
    listed = {"jsonrpc": "2.0", "id": 2, "method": "tools/list"}
    assert posted(url, listed, **session).status_code == 200
    assert httpx.delete(url, headers=HEADERS | session).status_code == 200
    assert posted(url, listed, **session).status_code == 404


def test_a_version_without_sessions_is_told_which_ones_have_them(url: str) -> None:
    answer = posted(
        url, {"jsonrpc": "2.0", "id": 7, "method": "server/discover"}, **{"mcp-protocol-version": "2026-07-28"}
    )
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (answer.json()["id"], error["code"]) == (7, -32022)
    assert "2025-11-25" in error["data"]["supported"]


def test_a_key_is_asked_for() -> None:
    with serving(key=KEY) as url:
        assert posted(url).status_code == 401
        assert posted(url, authorization="Bearer no").status_code == 401
        assert posted(url, authorization=f"Basic {KEY}").status_code == 401
        assert posted(url, authorization=f"Bearer {KEY}").status_code == 200


def test_a_name_can_be_allowed() -> None:
    with serving("--allow-host", "lab.example") as url:
        assert posted(url, host="lab.example").status_code == 200
        assert posted(url, host="lab.example:8080", origin="https://lab.example").status_code == 200


def test_no_daemon_is_a_tools_result_and_an_unknown_tool_an_error(url: str) -> None:
    async def session() -> None:
        async with Client(url) as client:
            result = await client.call_tool("run_code", {"code": "1"})
            assert result.is_error
            assert "daemon-unavailable" in json.dumps(result.structured_content)
            wrong = await client.call_tool("run_code", {"kode": "1"})
            assert wrong.is_error
            assert "invalid-spec" in json.dumps(wrong.structured_content)
            with pytest.raises(MCPError, match="no tool 'rm'"):
                await client.call_tool("rm", {})

    anyio.run(session)


def test_other_machines_need_a_key() -> None:
    for host in ("0.0.0.0", "::", "192.0.2.1", "example.org"):  # addresses to refuse, not to bind
        assert not is_loopback(host)
        with pytest.raises(InvalidSpec, match="other machines"):
            Listen(host, 1)
        Listen(host, 1, KEY)
        Listen(host, 1, anonymous=True)
    for host in ("127.0.0.1", "127.1.2.3", "::1", "[::1]", "localhost"):
        Listen(host, 1)


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mcp", None)
    with pytest.raises(ToolMissing, match=r"pip install 'casemate\[mcp\]'"):
        require()


def test_a_name_is_one_sandboxs() -> None:
    words = [sys.executable, "-m", "casemate.cli", "mcp", "--http", "127.0.0.1:0", "--name", "x"]
    done = subprocess.run(words, capture_output=True, timeout=30, check=False)
    assert done.returncode == 1
    assert b"--name" in done.stderr


def test_a_short_key_is_none() -> None:
    with pytest.raises(InvalidSpec, match="characters"):
        Listen("127.0.0.1", 1, "short")


def test_an_address_that_is_taken() -> None:
    with _bound(Listen("127.0.0.1", 0)) as listener, pytest.raises(HostError, match="choose another"):
        _bound(Listen("127.0.0.1", listener.getsockname()[1]))
