"""``casemate mcp``, driven by the official client, as an agent would."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

import anyio
import anyio.to_thread
import httpx
import pytest
from mcp import Client, StdioServerParameters
from mcp_types import CallToolResult, ImageContent, TextContent
from vm_world import Daemon

from casemate.sdk import Sandbox

pytestmark = pytest.mark.vm
MCP = [sys.executable, "-m", "casemate.cli", "mcp"]
GONE_S = 12.0
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


def environment() -> list[str]:
    """For ``env``: the SDK's client gives a server hardly anything of its own environment."""
    return [f"{name}={value}" for name, value in os.environ.items() if name.startswith("CASEMATE_")]


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


def test_a_killed_client_leaves_nothing(daemon: Daemon, no_trace: None) -> None:
    """What it started reads the end of its input, in the middle of a call."""
    script = (
        "import sys, anyio\nfrom mcp import Client, StdioServerParameters\n"
        "async def session():\n"
        "    async with Client(StdioServerParameters(command=sys.argv[1], args=sys.argv[2:])) as client:\n"
        "        await client.call_tool('run_command', {'command': 'true'})\n"
        "        print('ready', flush=True)\n"
        "        await client.call_tool('run_command', {'command': 'sleep 600'})\n"
        "anyio.run(session)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script, "env", *environment(), *MCP], stdout=subprocess.PIPE)
    try:
        assert process.stdout
        assert process.stdout.readline() == b"ready\n"
        assert len(sandboxes()) == 1
        process.kill()
        anyio.run(wait_until, lambda: not sandboxes())
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_killed_server_leaves_nothing(daemon: Daemon, no_trace: None, number: signal.Signals) -> None:
    process = subprocess.Popen(MCP, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdin
        assert process.stdout
        ask = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "t", "version": "0"}}
        call = {"name": "run_command", "arguments": {"command": "true"}}
        for body in (
            {"id": 1, "method": "initialize", "params": ask},
            {"method": "notifications/initialized"},
            {"id": 2, "method": "tools/call", "params": call},
        ):
            process.stdin.write(json.dumps({"jsonrpc": "2.0", **body}).encode() + b"\n")
        process.stdin.flush()
        assert b'"id":1' in process.stdout.readline()
        assert b'"id":2' in process.stdout.readline()
        assert len(sandboxes()) == 1
        process.send_signal(number)
        assert process.wait(10) == -number
        anyio.run(wait_until, lambda: not sandboxes())
    finally:
        process.kill()
        process.communicate()


def test_a_cancelled_call_ends_what_it_ran_and_the_session_goes_on(daemon: Daemon, no_trace: None) -> None:
    async def session() -> None:
        async with over_stdio() as client:
            await client.call_tool("run_command", {"command": "true"})
            (sandbox_id,) = sandboxes()
            with anyio.move_on_after(2):
                await client.call_tool("run_command", {"command": "sleep 601"})
            with Sandbox.connect(sandbox_id) as sandbox:
                with anyio.fail_after(GONE_S):
                    while "sleep" in sandbox.commands.run("ps -e -o comm").stdout:
                        await anyio.sleep(0.1)
                result = await client.call_tool("run_command", {"command": "echo still here"})
                assert text_of(result) == "still here\n"
        await wait_until(lambda: not sandboxes())

    anyio.run(session)


def test_output_comes_as_progress(daemon: Daemon, no_trace: None) -> None:
    told: list[tuple[float, str | None, float]] = []

    async def progress(done: float, total: float | None, message: str | None) -> None:
        told.append((done, message, time.monotonic()))

    async def session() -> None:
        async with over_stdio() as client:
            await client.call_tool("run_command", {"command": "true"})
            command = "for n in 1 2 3; do echo line $n; sleep 1; done"
            await client.call_tool("run_command", {"command": command}, progress_callback=progress)

    anyio.run(session)
    assert "".join(message or "" for _, message, _ in told) == "line 1\nline 2\nline 3\n"
    assert told[-1][2] - told[0][2] > 1.5
    assert [done for done, _, _ in told] == sorted({done for done, _, _ in told})


def test_over_http_a_client_that_is_killed_leaves_nothing(daemon: Daemon, no_trace: None) -> None:
    script = (
        "import sys, anyio\nfrom mcp import Client\n"
        "async def session():\n"
        "    async with Client(sys.argv[1]) as client:\n"
        "        await client.call_tool('run_command', {'command': 'true'})\n"
        "        print('ready', flush=True)\n"
        "        await client.call_tool('run_command', {'command': 'sleep 600'})\n"
        "anyio.run(session)\n"
    )
    with http_server() as (url, _):
        process = subprocess.Popen([sys.executable, "-c", script, url], stdout=subprocess.PIPE)
        try:
            assert process.stdout
            assert process.stdout.readline() == b"ready\n"
            assert len(sandboxes()) == 1
            process.kill()
            anyio.run(wait_until, lambda: not sandboxes())
        finally:
            process.kill()
            process.communicate()


def test_who_keeps_no_stream_open_is_gone_after_a_while(daemon: Daemon, no_trace: None) -> None:
    """Plain requests, as small clients make them: the session lasts between them, and not for ever."""
    headers = {"accept": "application/json, text/event-stream"}
    ask = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "t", "version": "0"}}
    call = {"name": "run_command", "arguments": {"command": "true"}}
    with http_server("--session-idle", "4") as (url, _):
        body = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": ask}
        headers["mcp-session-id"] = httpx.post(url, json=body, headers=headers).headers["mcp-session-id"]
        httpx.post(url, json={"jsonrpc": "2.0", "method": "notifications/initialized"}, headers=headers)
        for number in (2, 3):
            body = {"jsonrpc": "2.0", "id": number, "method": "tools/call", "params": call}
            assert httpx.post(url, json=body, headers=headers, timeout=60).status_code == 200
            assert len(sandboxes()) == 1
            time.sleep(2)
        anyio.run(wait_until, lambda: not sandboxes())
        assert httpx.post(url, json=body, headers=headers).status_code == 404


def test_a_sandbox_that_ended_is_said_once_and_then_there_is_a_new_one(daemon: Daemon, no_trace: None) -> None:
    async def session() -> None:
        async with over_stdio() as client:
            await client.call_tool("write_file", {"path": "a", "text": "b"})
            (sandbox_id,) = sandboxes()
            await anyio.to_thread.run_sync(Sandbox.connect(sandbox_id).kill)
            lost = await client.call_tool("read_file", {"path": "a"})
            assert lost.is_error
            assert "files and variables are lost" in text_of(lost)
            missing = await client.call_tool("read_file", {"path": "a"})
            assert "file-refused" in text_of(missing)
            assert sandboxes() - {sandbox_id}
        await wait_until(lambda: not sandboxes())

    anyio.run(session)


def test_much_output_is_cut_and_a_time_out_is_a_result(daemon: Daemon, no_trace: None) -> None:
    async def session() -> None:
        async with over_stdio() as client:
            much = await client.call_tool("run_command", {"command": "yes | head -c 30000000; echo last"})
            assert "bytes of output were cut" in text_of(much)
            assert len(text_of(much)) < 120_000
            late = await client.call_tool("run_command", {"command": "sleep 600", "timeout_s": 1})
            assert late.is_error
            assert "timed out after 1 s" in text_of(late)
            await client.call_tool("write_file", {"path": "p.png", "base64": PNG})
            picture = (await client.call_tool("read_file", {"path": "p.png"})).content[1]
            assert isinstance(picture, ImageContent)
            assert (picture.data, picture.mime_type) == (PNG, "image/png")

    anyio.run(session)


def test_code_with_its_state_tables_pictures_and_errors(daemon: Daemon, no_trace: None) -> None:
    async def session() -> None:
        async with over_stdio() as client:

            async def run(code: str, **more: object) -> CallToolResult:
                return await client.call_tool("run_code", {"code": code, **more})

            plot = await run("import matplotlib.pyplot as plt\nprint('before')\nplt.plot([1, 3, 2]); plt.show()")
            assert not plot.is_error, text_of(plot)
            assert text_of(plot).startswith("before\n")
            (picture,) = [block for block in plot.content if isinstance(block, ImageContent)]
            assert picture.mime_type == "image/png"
            assert base64.b64decode(picture.data).startswith(b"\x89PNG")
            frame = await run("import pandas as pd\nd = pd.DataFrame({'a': range(200), 'b': 'x'})\nd")
            assert "| 0 | x |" in text_of(frame)
            assert "of 200 rows" in text_of(frame)
            (table,) = frame.structured_content["tables"]
            assert table["shape"] == [200, 2]
            wrong = await run("def f():\n    return 1/0\nf()")
            assert wrong.is_error
            assert "ZeroDivisionError" in text_of(wrong)
            assert wrong.structured_content["end"]["name"] == "ZeroDivisionError"
            late = await run("x = 41\nimport time\nwhile True: time.sleep(0.01)", timeout_s=1)
            assert late.is_error
            assert late.structured_content["end"] == {"kind": "timed-out", "after_s": 1.0, "state_kept": True}
            with anyio.move_on_after(2):
                await run("x += 1\nwhile True: pass")
            assert text_of(await run("x")) == "42"  # the cancelled one was interrupted, its variables are kept
            unknown = await run("1", language="cobol")
            assert unknown.is_error
            assert "not-supported" in text_of(unknown)

    anyio.run(session)
