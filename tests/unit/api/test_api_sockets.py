"""WebSockets of the API: what is refused and how, what comes, and clients that leave."""

from __future__ import annotations

import json
import time
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import anyio
import pytest
from api_world import World, until

from casemate.api.native import sockets
from casemate.errors import NotFound, RequestError, StateConflict
from casemate.sdk._async.websocket import AsyncSocket, open_socket
from casemate.sdk.target import Target
from casemate.sdk.websocket import address_of

PTY = {"rows": 24, "cols": 80}


def socket(world: World, path: str) -> AbstractAsyncContextManager[AsyncSocket]:
    target = Target("http://c", Path(world.path))
    return open_socket(address_of(target, f"/v1/sandboxes/{path}", world.path, {}), target)


async def heard(here: AsyncSocket) -> list[Any]:
    """All there is to hear: bytes, and events without keep-alives."""
    said: list[Any] = []
    while (message := await here.receive()) is not None:
        item = json.loads(message) if isinstance(message, str) else message
        if not isinstance(item, dict) or item["event"] != "keepalive":
            said.append(item)
    return said


def test_a_program_on_a_terminal(serve):
    async def scenario(world: World) -> None:
        sandbox = await world.create()
        async with socket(world, f"{sandbox}/terminal") as here:
            await here.send(json.dumps({"argv": ["echo", "shown"], "pty": PTY}))
            started, shown, end = await heard(here)
        assert started["event"] == "started"
        assert started["stdout_offset"] == 0
        assert shown == b"shown"
        assert end["end"] == {"kind": "exited", "code": 0}
        async with socket(world, f"{sandbox}/execs/{started['exec_id']}/terminal?offset=3") as here:
            again = await heard(here)
        assert [again[0]["stdout_offset"], again[1]] == [3, b"wn"]

    serve(scenario)


def test_an_open_terminal_is_use_when_something_is_said_and_only_then(serve):
    async def scenario(world: World) -> None:
        sandbox = await world.create()
        usage = world.sandboxes.get("local", sandbox).usage
        async with socket(world, f"{sandbox}/terminal") as here:
            await here.send(json.dumps({"argv": ["cat"], "pty": PTY, "stdin": True}))
            await here.receive()
            await until(lambda: time.monotonic() - usage.used_at > 0.3)
            await here.send(b"key")
            await until(lambda: time.monotonic() - usage.used_at < 0.1, 2)
            await until(lambda: time.monotonic() - usage.used_at > 0.3)
        await until(lambda: time.monotonic() - usage.used_at < 0.1, 2)  # leaving is

    serve(scenario)


def test_a_key_wakes_who_is_parked(serve):
    async def scenario(world: World) -> None:
        sandbox = await world.create()
        handle, woken = world.sandboxes.get("local", sandbox), anyio.Event()

        class Frozen:
            async def thaw(self) -> None:
                woken.set()

        async with socket(world, f"{sandbox}/terminal") as here:
            await here.send(json.dumps({"argv": ["cat"], "pty": PTY, "stdin": True}))
            await here.receive()
            handle.parking.parked, handle.parking._machine, handle.parking._link = True, Frozen(), handle.link
            await here.send(b"key")
            with anyio.fail_after(5):
                await woken.wait()

    serve(scenario)


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("nobody/terminal", NotFound),
        ("nobody/ports/80", NotFound),
        ("{}/ports/0", RequestError),
        ("{}/ports/x", RequestError),
        ("{}/ports/99999", RequestError),
        ("{}/execs/ffff/terminal", NotFound),
        ("{}/execs/ffff/terminal?offset=-1", RequestError),
        ("{}/execs/ffff/terminal?other=1", RequestError),
    ],
)
def test_what_is_refused_before_it_opens(serve, path: str, error: type[Exception]):
    async def scenario(world: World) -> None:
        sandbox = await world.create()
        with pytest.raises(error):
            async with socket(world, path.format(sandbox)):
                pass

    serve(scenario)


@pytest.mark.parametrize(
    ("first", "code"),
    [
        ("{", "bad-request"),
        ("[]", "invalid-spec"),
        (b"bytes", "invalid-spec"),
        ('{"argv": ["sh"]}', "invalid-spec"),
        ('{"argv": ["sh"], "pty": {"rows": 0}}', "invalid-spec"),
        ('{"argv": ["sh"], "pty": {"rows": 70000}}', "invalid-spec"),
        ('{"argv": ["sh"], "pty": {"term": "a\\nb"}}', "invalid-spec"),
        ('{"argv": ["sh"], "pty": {"colour": true}}', "invalid-spec"),
        ('{"argv": ["missing"], "pty": {}}', "exec-refused"),
    ],
)
def test_what_is_refused_when_it_is_open(serve, first: str | bytes, code: str):
    async def scenario(world: World) -> None:
        sandbox = await world.create()
        async with socket(world, f"{sandbox}/terminal") as here:
            await here.send(first)
            said = await heard(here)
        assert [item["event"] for item in said] == ["error"]
        assert said[0]["error"]["code"] == code

    serve(scenario)


@pytest.mark.parametrize("order", ["x", '{"op": "fly"}', '{"op": "resize", "rows": 0, "cols": 1}', '{"op": "signal"}'])
def test_an_order_nobody_gives_ends_it(serve, order: str):
    async def scenario(world: World) -> None:
        sandbox = await world.create()
        async with socket(world, f"{sandbox}/terminal") as here:
            await here.send(json.dumps({"argv": ["hang"], "pty": PTY}))
            await here.send(order)
            assert (await heard(here))[-1]["event"] == "error"
        await until(lambda: all(program.end for program in world.guest(sandbox).programs.values()))

    serve(scenario)


def test_who_says_nothing_is_not_waited_for(serve, monkeypatch):
    monkeypatch.setattr(sockets, "FIRST_MESSAGE_S", 0.2)

    async def scenario(world: World) -> None:
        sandbox = await world.create()
        async with socket(world, f"{sandbox}/terminal") as here:
            assert (await heard(here))[0]["error"]["code"] == "bad-request"

    serve(scenario)


@pytest.mark.parametrize("keep", [False, True])
def test_who_leaves_ends_it_unless_it_is_to_be_kept(serve, keep: bool):
    async def scenario(world: World) -> None:
        sandbox = await world.create()
        body = {"argv": ["hang"], "pty": PTY, "on_disconnect": "keep" if keep else "kill"}
        async with socket(world, f"{sandbox}/terminal") as here:
            await here.send(json.dumps(body))
            await here.receive()
        program = next(iter(world.guest(sandbox).programs.values()))
        await until(lambda: program.channel is None)
        assert (program.end is None) is keep

    serve(scenario)


def test_who_is_gone_while_nobody_reads_what_he_typed_is_noticed(serve, monkeypatch):
    """The daemon cannot read on from a client while the guest takes nothing; so it does not see him leave, either."""
    monkeypatch.setattr(sockets, "KEEP_ALIVE_S", 0.2)

    async def scenario(world: World) -> None:
        sandbox = await world.create()
        async with socket(world, f"{sandbox}/terminal") as here:
            await here.send(json.dumps({"argv": ["deaf"], "pty": PTY}))
            await here.receive()
            with anyio.move_on_after(1):
                while True:
                    await here.send(bytes(65_536))
            here._connection.transport.abort()
        await until(lambda: all(program.end for program in world.guest(sandbox).programs.values()))

    serve(scenario)


def test_a_guest_that_lies_loses_its_machine(serve):
    async def scenario(world: World) -> None:
        sandbox = await world.create()
        async with socket(world, f"{sandbox}/terminal") as here:
            await here.send(json.dumps({"argv": ["lie"], "pty": PTY}))
            assert (await heard(here))[-1]["error"]["code"] == "protocol-violation"
        handle = world.sandboxes.handles[sandbox]
        with anyio.fail_after(5):
            await handle.ended.wait()

    serve(scenario)


def test_a_sandbox_that_ends_says_so(serve):
    async def scenario(world: World) -> None:
        sandbox = await world.create()
        async with socket(world, f"{sandbox}/terminal") as here:
            await here.send(json.dumps({"argv": ["hang"], "pty": PTY}))
            await here.receive()
            await world.client.delete(f"/v1/sandboxes/{sandbox}")
            assert (await heard(here))[-1]["error"]["code"] == StateConflict.code

    serve(scenario)
