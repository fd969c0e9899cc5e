"""A daemon that is told to stop stores who is to be stored when idle, and ends the others."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest
from tests.unit.sandbox.sandbox_world import TENANT, World, open_world

from casemate.errors import CasemateError
from casemate.sandbox import SandboxSpec, State

pytestmark = pytest.mark.usefixtures("each_stream")


def test_who_is_to_be_suspended_when_idle_is_suspended_at_the_end(tmp_path: Path, no_trace: None) -> None:
    async def main() -> tuple[str, str, World]:
        async with open_world(tmp_path) as world:
            kept = await world.sandboxes.create(TENANT, SandboxSpec(on_idle="suspend"))
            held = await world.sandboxes.create(TENANT, SandboxSpec(on_idle="suspend", attached=True))
            await world.sandboxes.create(TENANT, SandboxSpec(on_idle="keep"))
            await world.sandboxes.drain()
            assert held.info.state == "terminated"
            return kept.info.id, kept.info.state, world

    kept, state, world = anyio.run(main)
    assert state == "suspended"
    assert [folder.name for folder in world.folders.iterdir()] == [kept]
    assert (world.folders / kept / "suspended" / "manifest.json").is_file()


def test_who_cannot_be_stored_is_ended(tmp_path: Path, no_trace: None) -> None:
    async def main() -> World:
        async with open_world(tmp_path) as world:
            sandbox = await world.sandboxes.create(TENANT, SandboxSpec(on_idle="suspend"))
            (world.folders / sandbox.info.id / "disk").unlink()
            await world.sandboxes.drain()
            assert sandbox.info.state == "terminated"
            return world

    assert list(anyio.run(main).folders.iterdir()) == []


@pytest.mark.parametrize("on_idle", ["suspend", "keep"])
def test_who_calls_meanwhile_costs_nothing_that_is_stored(tmp_path: Path, on_idle: str, no_trace: None) -> None:
    """A call that is held while it is stored for the end does not have it resumed, and then ended."""

    async def main() -> tuple[str, World]:
        async with open_world(tmp_path) as world:
            handle = await world.sandboxes.create(TENANT, SandboxSpec(on_idle=on_idle))  # type: ignore[arg-type]
            if on_idle == "keep":
                await handle.suspend()

            async def call() -> None:
                with suppress(CasemateError):
                    while True:
                        async with handle.reach() as link, link.open("control", {"op": "sync"}):
                            pass

            async with anyio.create_task_group() as calls:
                for _ in range(5):
                    calls.start_soon(call)
                if on_idle == "keep":
                    while handle.info.state is not State.RESUMING:
                        await anyio.lowlevel.checkpoint()
                await world.sandboxes.drain()
            assert handle.info.state is State.SUSPENDED
            return handle.info.id, world

    kept, world = anyio.run(main)
    assert (world.folders / kept / "suspended" / "manifest.json").is_file()


def test_a_fault_of_ours_ends_no_adopted_one(tmp_path: Path, no_trace: None) -> None:
    """Nor does its daemon's end in a hurry: whoever wanted nothing of it finds it as it was."""
    kept = list[Path]()

    async def fail() -> None:
        raise RuntimeError("a fault of ours")

    async def main() -> None:
        async with open_world(tmp_path) as world:
            first = await world.sandboxes.create(TENANT, SandboxSpec(on_idle="suspend"))
            await world.sandboxes.drain()
            kept.append(world.folders / first.info.id / "suspended" / "manifest.json")
            world.sandboxes.adopt(first.info)
            await anyio.sleep(0.1)
            world.sandboxes._tasks.start_soon(fail)
            await anyio.sleep(5)

    with pytest.raises(BaseExceptionGroup) as raised:
        anyio.run(main)
    assert raised.group_contains(RuntimeError, match="a fault of ours")
    assert kept[0].is_file()
