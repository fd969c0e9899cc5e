"""A guest that lies is found out: typed, soon, and without costing much memory or another's time."""

from __future__ import annotations

import asyncio
import socket
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import anyio
import pytest
from tests.faults.lies import LIES, told

from casemate import errors, wire
from casemate.sandbox import Link, execs, files

FOUND_OUT_S = 5.0
MOST_BYTES = 8 << 20  # what one lie may make the host hold: windows of 256 KiB, and what is parsed of them
EXEC: dict[str, Any] = {"exec_id": "e", "pid": 42}


class Liar:
    """The guest's end, in bytes."""

    def __init__(self, stream: socket.socket) -> None:
        self.stream, self.connection = stream, wire.Connection(wire.Side.GUEST)

    async def hear(self) -> None:
        """Take in what the host says: credit, mostly."""
        self.connection.receive(await asyncio.get_running_loop().sock_recv(self.stream, 65_536))

    async def accept_one(self, body: dict[str, Any] = EXEC) -> int:
        """Accept the first channel that is opened; its number."""
        loop, number = asyncio.get_running_loop(), 0
        while not number:
            for event in self.connection.receive(await loop.sock_recv(self.stream, 65_536)):
                if isinstance(event, wire.Opened):
                    number = event.channel
                    self.connection.accept(number, body)
        await self.say(b"".join(iter(self.connection.outgoing, b"")))
        return number

    async def say(self, data: bytes, times: int = 1) -> None:
        loop = asyncio.get_running_loop()
        with suppress(ConnectionError):  # it was found out and hung up on
            for _ in range(times):
                await loop.sock_sendall(self.stream, data)


@asynccontextmanager
async def linked(silence_s: float = 30.0) -> AsyncIterator[tuple[Link, Liar]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        theirs.setblocking(False)
        link = Link("guest", silence_s=silence_s)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(link.run, ours)
            yield link, Liar(theirs)
            tasks.cancel_scope.cancel()


async def follow(link: Link, *, wait: bool = False, timeout_s: float | None = None) -> None:
    async with execs.start(link, execs.ExecSpec(("true",), timeout_s=timeout_s)) as running:
        if wait:
            await link.ended.wait()
        while not isinstance(await running.read(), execs.Ended):
            pass


@pytest.mark.parametrize("name", LIES)
def test_a_lie_ends_in_a_violation(name: str) -> None:
    lie, times = LIES[name]

    async def run() -> None:
        async with linked() as (link, liar), anyio.create_task_group() as tasks:

            async def tell() -> None:
                number = await liar.accept_one()
                tracemalloc.start()
                batch = max(1, min(times, 1 + 65_536 // len(lie)))
                await liar.say(told(lie, number) * batch, -(-times // batch))

            tasks.start_soon(tell)
            with anyio.fail_after(FOUND_OUT_S), pytest.raises(errors.ProtocolViolation):
                await follow(link, wait=times > 1)  # a flood: nobody reads meanwhile
            tasks.cancel_scope.cancel()

    try:
        anyio.run(run)
        assert tracemalloc.get_traced_memory()[1] < MOST_BYTES
    finally:
        tracemalloc.stop()


def test_an_idle_guest_is_not_taken_for_a_silent_one() -> None:
    """Once the silence was counted from the last byte: work that began after a long rest could be ended at once."""

    async def run() -> None:
        async with linked(silence_s=0.4) as (link, liar), anyio.create_task_group() as tasks:
            await anyio.sleep(0.75)  # the next look at it comes 50 ms after the work has begun

            async def answer_late() -> None:
                await anyio.sleep(0.1)
                await liar.accept_one()

            tasks.start_soon(answer_late)
            await opened(link, 5)

    anyio.run(run)


async def opened(link: Link, timeout_s: float) -> None:
    async with link.open("exec", {}, timeout_s=timeout_s):
        assert link.failure is None


@pytest.mark.parametrize("kind", ["open", "ping"])
def test_one_that_was_asked_in_vain_is_given_up(kind: str) -> None:
    async def run() -> None:
        async with linked(silence_s=0.3) as (link, _):
            with anyio.fail_after(FOUND_OUT_S):
                with pytest.raises(errors.AgentSilent):
                    await (link.ping(timeout_s=0.05) if kind == "ping" else opened(link, 0.05))
                await link.ended.wait()
            assert isinstance(link.failure, errors.AgentSilent)

    anyio.run(run)


def test_a_folder_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few entries with long names: once only their number was bounded."""
    monkeypatch.setattr(files, "MAX_LISTING_BYTES", 4 << 20)

    async def run() -> None:
        async with linked() as (link, liar), anyio.create_task_group() as tasks:
            name = "x" * 50_000
            entry = {"name": name, "path": name, "type": "file", "size": 0, "mode": 0, "uid": 0, "gid": 0}
            message = {"entries": [entry | {"path": "/", "mtime_ns": 0}]}

            async def tell() -> None:
                number = await liar.accept_one({"entries": []})
                while True:
                    while liar.connection.writable(number):
                        liar.connection.send_message(number, message)
                    await liar.say(b"".join(iter(liar.connection.outgoing, b"")))
                    await liar.hear()

            tasks.start_soon(tell)
            with anyio.fail_after(FOUND_OUT_S), pytest.raises(errors.InvalidSpec):
                await files.listed(link, "/many")
            tasks.cancel_scope.cancel()

    anyio.run(run)


def test_an_exec_that_never_ends_at_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The agent answers everything else meanwhile, so it is not silent."""
    monkeypatch.setattr(execs, "OVERDUE_S", 0.1)

    async def run() -> None:
        async with linked() as (link, liar), anyio.create_task_group() as tasks:
            tasks.start_soon(liar.accept_one)
            with anyio.fail_after(FOUND_OUT_S), pytest.raises(errors.AgentSilent):
                await follow(link, timeout_s=0.1)

    anyio.run(run)


def test_the_time_of_an_exec_stands_still_with_its_guest(monkeypatch: pytest.MonkeyPatch) -> None:
    """The guest's clock stands still while it is suspended; who follows a command then does not give it up."""
    monkeypatch.setattr(execs, "OVERDUE_S", 0.1)

    async def run() -> None:
        async with linked() as (link, liar), anyio.create_task_group() as tasks:
            tasks.start_soon(liar.accept_one)
            with anyio.move_on_after(1.5) as waited:
                async with execs.start(link, execs.ExecSpec(("x",), timeout_s=0.3)) as running:
                    link.rest()
                    await running.read()
            assert waited.cancelled_caught

    anyio.run(run)
