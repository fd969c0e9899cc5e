"""Where a save breaks the stream: what follows when there is no next one, and a guest that does not come to rest."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio
import pytest
from sandbox_world import TENANT, World, open_world
from test_suspend_resume import answers, following, lone
from tests.fakes.fake_vmm import Agent, FakeDriver, FakeMachine

from casemate import errors, wire
from casemate.sandbox import State, carrying, starting


@pytest.fixture(autouse=True)
def breaking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeDriver, "stream_survives", False)
    monkeypatch.setattr(starting, "SPARE_DISK_MIB", 0)


def run(folder: Path, main: Callable[[World], Awaitable[None]]) -> None:
    async def live() -> None:
        with anyio.fail_after(60):
            async with open_world(folder, agent_timeout_s=2) as world:
                await main(world)

    anyio.run(live)


async def refuse(_: FakeMachine) -> None:
    raise errors.VmmRefused("nobody takes a connection")


async def never_answer(_: FakeMachine) -> None:
    await anyio.sleep_forever()


@pytest.mark.parametrize("answer", [refuse, never_answer])
def test_a_parent_that_gets_no_other_stream_ends(
    tmp_path: Path, no_trace: None, monkeypatch: pytest.MonkeyPatch, answer: Callable[..., Awaitable[None]]
) -> None:
    """At once, and whoever was in the middle of something is told. The copy is whole."""
    monkeypatch.setattr(FakeMachine, "reopen_stream", answer)
    monkeypatch.setattr(carrying, "REOPEN_S", 0.2)

    async def main(world: World) -> None:
        parent, started, told = await lone(world), anyio.Event(), list[errors.CasemateError]()

        async def follow() -> None:
            try:
                await following(parent, started, bytearray())
            except errors.CasemateError as error:
                told.append(error)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(follow)
            await started.wait()
            (copy,) = await world.sandboxes.fork(TENANT, parent.info.id, 1)
            await parent.ended.wait()
        await answers(copy)
        await copy.kill()
        assert told
        assert parent.info.state_reason is not None
        assert parent.info.state_reason.code == "guest-silent"

    run(tmp_path, main)


def test_one_that_does_not_come_to_rest_goes_on(
    tmp_path: Path, no_trace: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not saved: what it has said and nobody has heard would be lost. Its late answer does no harm."""
    monkeypatch.setattr(carrying, "QUIET_S", 0.2)

    async def main(world: World) -> None:
        handle = await lone(world)
        assert world.driver.latest is not None
        agent: Agent = world.driver.latest.agent
        mute, late, say_last = agent.connection, list[wire.Connection](), wire.Connection._say_last

        def say_nothing_yet(end: wire.Connection) -> None:
            late.append(end) if end is mute else say_last(end)

        monkeypatch.setattr(wire.Connection, "_say_last", say_nothing_yet)
        with pytest.raises(errors.AgentSilent, match="rest"):
            await handle.suspend()
        assert handle.info.state is State.RUNNING
        await answers(handle)
        assert late == [mute]
        monkeypatch.setattr(wire.Connection, "_say_last", say_last)
        mute._say_last()
        await answers(handle)
        assert (await handle.suspend()).state is State.SUSPENDED
        await answers(handle)

    run(tmp_path, main)
