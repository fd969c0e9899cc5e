"""The link between a stream and its channels, with the other end of the wire in the test's hands."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest

from casemate import errors, wire
from casemate.sandbox import Link
from casemate.sandbox.link import PATIENCE


class Peer:
    """The guest's end, driven by hand."""

    def __init__(self, stream: socket.socket) -> None:
        self.stream, self.connection = stream, wire.Connection(wire.Side.GUEST)
        self.events: list[wire.Event] = []

    async def hear(self, kind: type[wire.Event]) -> wire.Event:
        """The next event of that kind; answers what has to be answered."""
        with anyio.fail_after(10):
            while True:
                for index, event in enumerate(self.events):
                    if isinstance(event, kind):
                        return self.events.pop(index)
                data = await asyncio.get_running_loop().sock_recv(self.stream, 65_536)
                assert data
                self.events += self.connection.receive(data)
                await self.speak()

    async def speak(self) -> None:
        while chunk := self.connection.outgoing():
            await asyncio.get_running_loop().sock_sendall(self.stream, chunk)


@asynccontextmanager
async def linked(silence_s: float = 30) -> AsyncIterator[tuple[Link, Peer]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        theirs.setblocking(False)
        link = Link("guest", silence_s=silence_s)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(link.run, ours)
            yield link, Peer(theirs)
            tasks.cancel_scope.cancel()


def test_a_hello_said_before_the_link_runs_is_carried() -> None:
    """Once it was lost: run() began a connection of its own, and a cold boot waited for ever."""

    async def run() -> None:
        async with linked() as (link, peer), anyio.create_task_group() as tasks:
            link.connection.hello({"first": 1})  # no await since the link was made: run() has not begun

            async def answer() -> None:
                assert await peer.hear(wire.Hello) == wire.Hello({"first": 1})

            tasks.start_soon(answer)

    anyio.run(run)


def test_hostile_bytes_end_it_with_a_violation_for_everybody() -> None:
    async def run() -> None:
        async with linked() as (link, peer), anyio.create_task_group() as tasks:

            async def lie() -> None:
                await peer.hear(wire.Opened)
                await asyncio.get_running_loop().sock_sendall(peer.stream, b"\xff" * 64)

            tasks.start_soon(lie)
            with pytest.raises(errors.ProtocolViolation):
                async with link.open("exec", {}):
                    pytest.fail("opened")
            assert isinstance(link.failure, errors.ProtocolViolation)

    anyio.run(run)


def test_an_agent_that_never_answers_is_silent_in_time() -> None:
    async def run() -> None:
        async with linked() as (link, _):
            with pytest.raises(errors.AgentSilent):
                async with link.open("exec", {}, timeout_s=0.05):
                    pytest.fail("opened")
            with pytest.raises(errors.AgentSilent):
                await link.ping(timeout_s=0.05)

    anyio.run(run)


def test_a_stream_that_ends_ends_every_wait() -> None:
    async def run() -> None:
        async with linked() as (link, peer), anyio.create_task_group() as tasks:

            async def answer_and_go() -> None:
                opened = await peer.hear(wire.Opened)
                assert isinstance(opened, wire.Opened)
                peer.connection.accept(opened.channel)
                await peer.speak()
                await anyio.sleep(0.02)
                peer.stream.close()

            tasks.start_soon(answer_and_go)
            async with link.open("exec", {}) as channel:
                with pytest.raises(errors.AgentSilent):
                    await channel.receive()
            with pytest.raises(errors.GuestError):
                async with link.open("exec", {}):
                    pytest.fail("opened")

    anyio.run(run)


def test_a_cancelled_receive_loses_nothing() -> None:
    async def run() -> None:
        async with linked() as (link, peer), anyio.create_task_group() as tasks:
            channels: list[int] = []

            async def accept() -> None:
                opened = await peer.hear(wire.Opened)
                assert isinstance(opened, wire.Opened)
                peer.connection.accept(opened.channel)
                await peer.speak()
                channels.append(opened.channel)

            tasks.start_soon(accept)
            async with link.open("exec", {}) as channel:
                for number in range(50):
                    with anyio.move_on_after(0):
                        await channel.receive()
                        pytest.fail("there was nothing yet")
                    peer.connection.send(channels[0], 1, bytes([number]))
                    await peer.speak()
                    with anyio.fail_after(10):
                        found = await channel.receive()
                    assert isinstance(found, wire.Data)
                    assert found.data == bytes([number])

    anyio.run(run)


def test_a_refusal_keeps_its_class() -> None:
    async def run() -> None:
        async with linked() as (link, peer), anyio.create_task_group() as tasks:

            async def deny() -> None:
                opened = await peer.hear(wire.Opened)
                assert isinstance(opened, wire.Opened)
                peer.connection.deny(opened.channel, "file-refused", errno="ENOENT", message="not there")
                await peer.speak()

            tasks.start_soon(deny)
            with pytest.raises(errors.FileRefused) as caught:
                async with link.open("file", {"op": "read"}):
                    pytest.fail("opened")
            assert caught.value.evidence["errno"] == "ENOENT"

    anyio.run(run)


async def shake(link: Link, number: int) -> None:
    assert await link.handshake({"number": number}, timeout_s=10) == {"number": number}


def test_each_hello_gets_its_own_ready() -> None:
    async def run() -> None:
        async with linked() as (link, peer), anyio.create_task_group() as tasks:

            async def answer() -> None:
                for _ in range(3):
                    said = await peer.hear(wire.Hello)
                    assert isinstance(said, wire.Hello)
                    peer.connection.ready(said.body)
                    await peer.speak()

            tasks.start_soon(answer)
            for number in range(3):  # one conversation, introduced again in its midst
                await shake(link, number)

    anyio.run(run)


def test_a_late_ready_is_not_the_next_hellos() -> None:
    async def run() -> None:
        async with linked() as (link, peer), anyio.create_task_group() as tasks:
            with pytest.raises(errors.AgentSilent):
                await link.handshake({"number": 1}, timeout_s=0.05)

            async def answer_both() -> None:
                for _ in range(2):
                    said = await peer.hear(wire.Hello)
                    assert isinstance(said, wire.Hello)
                    peer.connection.ready(said.body)
                    await peer.speak()

            tasks.start_soon(answer_both)
            await shake(link, 2)

    anyio.run(run)


@pytest.mark.parametrize("asked", [0, 1])
def test_a_ready_nobody_asked_for_is_a_violation(asked: int) -> None:
    async def run() -> None:
        async with linked() as (link, peer), anyio.create_task_group() as tasks:
            tasks.start_soon(peer.hear, wire.Synced)
            await anyio.wait_all_tasks_blocked()
            if asked:

                async def answer() -> None:
                    await peer.hear(wire.Hello)
                    peer.connection.ready({"number": 1})
                    await peer.speak()

                tasks.start_soon(answer)
                await shake(link, 1)
            peer.connection.ready({})
            await peer.speak()
            with anyio.fail_after(10):
                await link.ended.wait()
            assert isinstance(link.failure, errors.ProtocolViolation)

    anyio.run(run)


async def until_silent() -> float:
    """How long the link of an agent that says nothing lasts, once somebody has waited for it in vain."""
    async with linked(silence_s=0.1) as (link, _):
        began = time.monotonic()
        with pytest.raises(errors.AgentSilent):
            await link.ping(timeout_s=0.01)
        with anyio.fail_after(60):
            await link.ended.wait()
        assert isinstance(link.failure, errors.AgentSilent)
        return time.monotonic() - began


def test_while_the_host_is_crowded_an_agent_may_be_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    crowded = iter([True, True, True, False])
    monkeypatch.setattr("casemate.sandbox.link.is_crowded", lambda: next(crowded))
    monkeypatch.setattr("casemate.sandbox.link.PATIENCE", 1_000_000)  # however slowly this machine runs
    anyio.run(until_silent)
    assert list(crowded) == []


def test_it_may_not_be_silent_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("casemate.sandbox.link.is_crowded", lambda: True)
    assert anyio.run(until_silent) > 0.1 * PATIENCE
