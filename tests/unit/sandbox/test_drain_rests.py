"""A daemon that is told to stop stores who is to be stored when idle, and ends the others."""

from __future__ import annotations

from pathlib import Path

import anyio
from tests.unit.sandbox.sandbox_world import TENANT, World, open_world

from casemate.sandbox import SandboxSpec


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
