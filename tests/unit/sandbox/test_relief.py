"""A full host: who has nothing to do is suspended for who asks, where it may be, before anybody is refused."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest
from tests.fakes.fake_vmm import FakeMachine
from tests.unit.sandbox.sandbox_world import TENANT, World, open_world
from tests.unit.sandbox.test_rest import IDLE, until

from casemate.errors import HostFull
from casemate.sandbox import Handle, SandboxSpec, State

ROOM = 2  # of 100 MiB each; one takes 48 and a quarter of its guest's 128


async def made(world: World, name: str, **wish: object) -> Handle:
    world.admission.learn("s", 48)
    spec = SandboxSpec(name=name, **{"on_idle": "suspend", "park_after_s": 0.1, "idle_timeout_s": None} | wish)  # type: ignore[arg-type]
    handle = await world.sandboxes.create(TENANT, spec)
    assert isinstance(handle._machine, FakeMachine)
    handle._machine.agent.activity = IDLE
    return handle


def states(*handles: Handle) -> list[State]:
    return [handle.info.state for handle in handles]


def test_the_longest_unused_makes_room(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_world(tmp_path, room=ROOM) as world:
            first, second = await made(world, "first"), await made(world, "second")
            await until(lambda: first.parked and second.parked)
            async with first.reach(), second.reach():
                pass  # first is let go of last
            await until(lambda: first.parked and second.parked)
            third = await made(world, "third")
            assert states(first, second, third) == [State.RUNNING, State.SUSPENDED, State.RUNNING]

    anyio.run(scenario)


@pytest.mark.parametrize("wish", [{"on_idle": "keep"}, {"on_idle": "kill"}, {"park_after_s": None}], ids=str)
def test_who_may_not_be_suspended_is_not(tmp_path: Path, wish: dict[str, object]) -> None:
    async def scenario() -> None:
        async with open_world(tmp_path, room=ROOM) as world:
            first, second = await made(world, "first", **wish), await made(world, "second", **wish)
            await until(lambda: (first.parked and second.parked) or first.spec.park_after_s is None)
            with pytest.raises(HostFull):
                await made(world, "third")
            assert states(first, second) == [State.RUNNING, State.RUNNING]

    anyio.run(scenario)


def test_who_works_is_not_suspended(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_world(tmp_path, room=ROOM) as world:
            first, second = await made(world, "first"), await made(world, "second")
            await until(lambda: first.parked and second.parked)
            async with first.reach(), second.reach():
                with pytest.raises(HostFull):
                    await made(world, "third")
            assert states(first, second) == [State.RUNNING, State.RUNNING]

    anyio.run(scenario)
