"""A caller that goes away has its cell interrupted within 2 s: reset, half-closed, cut off, stopped. A slow one not."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import textwrap

import anyio
import pytest
from api_world import World, until
from tests.fair import fair_clock

WITHIN_S = 2.0
SLOW_S = 3.0  # longer than what would count as gone


def cell_of(world: World, sandbox: str):
    cells = world.guest(sandbox).code.cells
    return next(iter(cells.values())) if cells else None


async def begun(world: World, sandbox: str):
    await until(lambda: (cell := cell_of(world, sandbox)) and cell.state == "running")
    return cell_of(world, sandbox)


async def interrupted_within(cell, begin: float) -> float:
    with anyio.fail_after(10):
        await cell.interrupted.wait()
    took_s = fair_clock() - begin
    assert took_s < WITHIN_S
    return took_s


def request_of(sandbox: str, **body) -> bytes:
    data = json.dumps({"code": "hang", **body}).encode()
    head = f"POST /v1/sandboxes/{sandbox}/code HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: {len(data)}\r\n"
    return head.encode() + b"\r\n" + data


async def connected(world: World, sandbox: str, *, tcp: bool, **body) -> socket.socket:
    """A socket of ours on which a hanging cell was asked for."""
    client = socket.socket(socket.AF_INET if tcp else socket.AF_UNIX)
    client.connect(("127.0.0.1", world.port) if tcp else world.path)
    request = request_of(sandbox, **body)
    if tcp:
        request = request.replace(b"\r\n\r\n", f"\r\nauthorization: Bearer {await world.key()}\r\n\r\n".encode(), 1)
    client.sendall(request)
    return client


@pytest.mark.parametrize("tcp", [False, True])
@pytest.mark.parametrize("code", ["hang", "flood 100000000"])
@pytest.mark.parametrize("how", ["close", "reset", "half-close"])
def test_a_connection_that_ends(serve, tcp, code, how):
    async def scenario(world):
        sandbox = await world.create()
        with await connected(world, sandbox, tcp=tcp, code=code) as client:
            cell = await begun(world, sandbox)
            await anyio.sleep(0.5)  # until it is held up
            begin = fair_clock()
            if how == "half-close":
                client.shutdown(socket.SHUT_WR)
            elif how == "reset":
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            if how != "half-close":
                client.close()
            await interrupted_within(cell, begin)

    serve(scenario)


@pytest.mark.parametrize("code", ["hang", "flood 100000000"])
def test_a_tcp_peer_that_was_cut_off(serve, code):
    """Its kernel answers nothing any more, as after a pulled cable: a filter on its socket drops all that comes."""

    async def scenario(world):
        sandbox = await world.create()
        with await connected(world, sandbox, tcp=True, code=code) as client:
            cell = await begun(world, sandbox)
            await anyio.sleep(0.3)
            cut_off(client)
            await interrupted_within(cell, fair_clock())

    serve(scenario)


def test_a_tcp_peer_that_does_not_read_is_not_cut_off(serve):
    async def scenario(world):
        sandbox = await world.create()
        with await connected(world, sandbox, tcp=True, code="flood 100000000"):
            cell = await begun(world, sandbox)
            await anyio.sleep(SLOW_S)
            assert not cell.interrupted.is_set()
            held_up_at = cell.offset
            assert held_up_at < 40_000_000
            await anyio.sleep(0.5)
            assert cell.offset == held_up_at

    serve(scenario)


CLIENT = """
    import socket, sys
    client = socket.socket(socket.AF_UNIX)
    client.connect(sys.argv[1])
    client.sendall(sys.stdin.buffer.read())
    while client.recv(65536):
        pass
"""


def test_a_stopped_process_on_the_unix_socket(serve):
    async def scenario(world):
        sandbox = await world.create()
        argv = [sys.executable, "-c", textwrap.dedent(CLIENT), world.path]
        child = await anyio.open_process(argv, stdin=subprocess.PIPE, stdout=None, stderr=None)
        async with child:
            await child.stdin.send(request_of(sandbox))
            await child.stdin.aclose()
            cell = await begun(world, sandbox)
            child.send_signal(signal.SIGSTOP)
            await anyio.sleep(0.2)
            child.send_signal(signal.SIGCONT)  # for a moment only: that is nothing
            await anyio.sleep(SLOW_S / 2)
            assert not cell.interrupted.is_set()
            child.send_signal(signal.SIGSTOP)
            await interrupted_within(cell, fair_clock())
            await until(lambda: cell.end)
            assert cell.end == {"kind": "interrupted", "state_kept": True}
            child.kill()

    serve(scenario)


def test_a_stopped_process_whose_cell_does_not_listen_is_let_go(serve):
    async def scenario(world):
        sandbox = await world.create()
        argv = [sys.executable, "-c", textwrap.dedent(CLIENT), world.path]
        child = await anyio.open_process(argv, stdin=subprocess.PIPE, stdout=None, stderr=None)
        async with child:
            await child.stdin.send(request_of(sandbox, code="hang hard", grace_s=0.5))
            await child.stdin.aclose()
            cell = await begun(world, sandbox)
            child.send_signal(signal.SIGSTOP)
            await until(lambda: cell.end)
            assert cell.end["kind"] == "context-died"
            child.kill()

    serve(scenario)


SDK_CLIENT = """
    import sys
    from casemate.sdk import Sandbox
    print(Sandbox.connect(sys.argv[2], url=sys.argv[1]).run_code("hang").end, flush=True)
"""


def test_a_stopped_process_over_tcp(serve):
    """The SDK says that it lives; stopped, it does not. One that lives is heard, however long its cell says nothing."""

    async def scenario(world):
        sandbox = await world.create()
        argv = [sys.executable, "-c", textwrap.dedent(SDK_CLIENT), f"http://127.0.0.1:{world.port}", sandbox]
        env = os.environ | {"CASEMATE_API_KEY": await world.key()}
        child = await anyio.open_process(argv, stdout=subprocess.PIPE, stderr=None, env=env)
        async with child:
            with anyio.fail_after(30):
                while cell_of(world, sandbox) is None:
                    await anyio.sleep(0.05)
            cell = await begun(world, sandbox)
            await anyio.sleep(SLOW_S)
            assert not cell.interrupted.is_set()
            child.send_signal(signal.SIGSTOP)
            await interrupted_within(cell, fair_clock())
            child.send_signal(signal.SIGCONT)
            said = b""
            while not said.endswith(b"\n"):
                said += await child.stdout.receive()
            assert said == b"Interrupted(state_kept=True)\n"

    serve(scenario)


BUSY_CLIENT = """
    import sys, time
    import anyio, httpx
    from casemate.sdk import AsyncClient, AsyncSandbox
    from casemate.sdk._async import client as connections

    connections.LIMITS = httpx.Limits(max_connections=4)

    async def main():
        async with AsyncClient(sys.argv[1]) as client, anyio.create_task_group() as tasks:
            sandbox = await AsyncSandbox.connect(sys.argv[2], client=client)
            for _ in range(4):
                tasks.start_soon(sandbox.run_code, "hang")
            await anyio.sleep(2)
            time.sleep(float(sys.argv[3]))
            await anyio.sleep_forever()

    anyio.run(main)
"""


@pytest.mark.parametrize("held_up_s", [0, SLOW_S])
def test_a_program_that_is_busy_lives(serve, held_up_s):
    """All its client's connections carry cells, and it may do something else on its event loop for a while."""

    async def scenario(world):
        sandbox = await world.create()
        url = f"http://127.0.0.1:{world.port}"
        argv = [sys.executable, "-c", textwrap.dedent(BUSY_CLIENT), url, sandbox, str(held_up_s)]
        env = os.environ | {"CASEMATE_API_KEY": await world.key()}
        child = await anyio.open_process(argv, stdout=None, stderr=None, env=env)
        async with child:
            cells = world.guest(sandbox).code.cells
            with anyio.fail_after(30):
                while len(cells) < 4:
                    await anyio.sleep(0.05)
            for _ in range(int(2 * SLOW_S / 0.1)):
                await anyio.sleep(0.1)
                assert not any(cell.interrupted.is_set() for cell in cells.values())
            child.send_signal(signal.SIGSTOP)
            began = fair_clock()
            await until(lambda: all(cell.interrupted.is_set() for cell in cells.values()))
            assert fair_clock() - began < 2 * WITHIN_S
            child.kill()

    serve(scenario)


def test_a_detached_cell_needs_no_caller(serve):
    async def scenario(world):
        sandbox = await world.create()
        with await connected(world, sandbox, tcp=False, detach=True, caller_timeout_s=0.5):
            cell = await begun(world, sandbox)
            await anyio.sleep(SLOW_S / 2)
        await anyio.sleep(0.3)
        assert not cell.interrupted.is_set()

    serve(scenario)


def cut_off(client: socket.socket) -> None:
    """Attach a filter that lets nothing through: struct sock_fprog with one instruction, `ret 0`."""
    instruction = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))
    program = struct.pack("HxxxxxxP", 1, ctypes.addressof(instruction))
    client.setsockopt(socket.SOL_SOCKET, 26, program)  # SO_ATTACH_FILTER
