"""``casemate mcp``, driven by the official client, as an agent would."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

import anyio
import pytest
from mcp import Client, StdioServerParameters
from mcp_types import CallToolResult, TextContent
from vm_world import Daemon

from casemate.sdk import Sandbox

pytestmark = pytest.mark.vm
MCP = [sys.executable, "-m", "casemate.cli", "mcp"]
GONE_S = 12.0


def sandboxes() -> set[str]:
    return {sandbox.id for sandbox in Sandbox.list()}


def text_of(result: CallToolResult) -> str:
    return "\n".join(block.text for block in result.content if isinstance(block, TextContent))


async def wait_until(condition: Callable[[], bool], limit_s: float = GONE_S) -> None:
    with anyio.fail_after(limit_s):
        while not condition():
            await anyio.sleep(0.05)


@asynccontextmanager
async def over_stdio(mode: str = "auto", *words: str) -> AsyncIterator[Client]:
    parameters = StdioServerParameters(command=MCP[0], args=[*MCP[1:], *words], env=dict(os.environ))
    async with Client(parameters, mode=mode) as client:
        yield client


@contextmanager
def http_server(*words: str, **env: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    process = subprocess.Popen([*MCP, "--http", "127.0.0.1:0", *words], stdout=subprocess.PIPE, env=os.environ | env)
    try:
        assert process.stdout
        url = process.stdout.readline().decode().strip()
        assert url.startswith("http://127.0.0.1:"), url
        yield url, process
    finally:
        process.terminate()
        try:
            process.wait(20)
        finally:
            process.kill()
            process.communicate()


@pytest.mark.parametrize("mode", ["legacy", "auto"])
def test_a_session_over_stdio(daemon: Daemon, no_trace: None, mode: str) -> None:
    async def session() -> None:
        async with over_stdio(mode) as client:
            tools = await client.list_tools()
            assert {tool.name for tool in tools.tools} == {
                "run_code",
                "run_command",
                "read_file",
                "write_file",
                "list_files",
            }
            assert not sandboxes()  # none until it is needed
            await client.call_tool("write_file", {"path": "a/b.txt", "text": "grüße\n"})
            assert len(sandboxes()) == 1
            read = await client.call_tool("read_file", {"path": "/home/user/a/b.txt"})
            assert text_of(read) == "grüße\n"
            listed = await client.call_tool("list_files", {"path": "a"})
            assert "b.txt" in text_of(listed)
            done = await client.call_tool("run_command", {"command": "cat b.txt; echo no >&2; exit 3", "cwd": "a"})
            assert done.is_error
            assert text_of(done) == "grüße\n\n[stderr]\nno\n\n[end] exit status 3"
            await client.call_tool("run_code", {"code": "x = 6"})
            assert text_of(await client.call_tool("run_code", {"code": "x * 7"})) == "42"
            missing = await client.call_tool("read_file", {"path": "nothing"})
            assert missing.is_error
            assert "file-refused" in text_of(missing)
        await wait_until(lambda: not sandboxes())

    anyio.run(session)


def test_two_sessions_over_http_have_two_sandboxes_that_go_with_them(daemon: Daemon, no_trace: None) -> None:
    async def session(url: str) -> None:
        async with Client(url) as one, Client(url) as two:
            await one.call_tool("run_code", {"code": "x = 'one'"})
            lost = await two.call_tool("run_code", {"code": "x"})
            assert lost.is_error
            assert "NameError" in text_of(lost)
            assert len(sandboxes()) == 2
            assert text_of(await one.call_tool("run_code", {"code": "x"})) == "'one'"
        await wait_until(lambda: not sandboxes())

    with http_server() as (url, _):
        anyio.run(session, url)
