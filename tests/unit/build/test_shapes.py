"""Snapshots of shapes: built once, lent, and dropped by last use."""

from __future__ import annotations

import os
from contextlib import AsyncExitStack
from pathlib import Path

import anyio
import pytest
from tests.unit.build.build_world import DEFAULT, TENANT, WIDE, World, open_world

from casemate import errors
from casemate.sandbox import Shape, Snapshot

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("no_trace")]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def borrow(world: World, shape: Shape, into: list[Snapshot], **more: object) -> None:
    async with world.images.snapshot_for(TENANT, "python", shape, **more) as snapshot:  # type: ignore[arg-type]
        into.append(snapshot)


async def until(condition: object) -> None:
    with anyio.fail_after(10):
        while not condition():  # type: ignore[operator]
            await anyio.sleep(0.005)


async def test_a_shape_is_built_once_for_all_and_each_is_told(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        await world.import_image()
        world.driver.gate = anyio.Event()
        got: list[Snapshot] = []
        heard: dict[int, list[str]] = {n: [] for n in range(20)}
        async with anyio.create_task_group() as tasks:
            for n in range(20):
                tell = lambda step, message, fraction, n=n: heard[n].append(step)  # noqa: E731
                tasks.start_soon(lambda tell=tell: borrow(world, WIDE, got, progress=tell))
            await until(lambda: all("boot" in steps for steps in heard.values()))
            late: list[str] = []
            tasks.start_soon(lambda: borrow(world, WIDE, got, progress=lambda step, m, f: late.append(step)))
            await until(lambda: late)
            assert late == ["boot"]  # who comes late learns at once where it stands
            world.driver.gate.set()
        assert world.driver.boots == 1
        assert len(got) == 21
        assert len({snapshot.id for snapshot in got}) == 1
        assert all(steps[-1] == "done" for steps in [*heard.values(), late])


async def test_one_who_gives_up_takes_the_build_from_nobody(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        await world.import_image()
        world.driver.gate = anyio.Event()
        got: list[Snapshot] = []
        async with anyio.create_task_group() as tasks:
            first = anyio.CancelScope()

            async def given_up() -> None:
                with first:
                    await borrow(world, WIDE, got)

            tasks.start_soon(given_up)
            await until(lambda: world.driver.boots)
            tasks.start_soon(borrow, world, WIDE, got)
            await anyio.sleep(0.01)
            first.cancel()
            await until(lambda: first.cancelled_caught)
            world.driver.gate.set()
        assert world.driver.boots == 1
        assert [snapshot.shape for snapshot in got] == [WIDE]


async def test_a_build_nobody_waits_for_any_more_serves_the_next(tmp_path: Path) -> None:
    """Else a client with less patience than a build takes could never get one."""
    async with open_world(tmp_path) as world:
        await world.import_image()
        world.driver.gate = anyio.Event()
        with anyio.move_on_after(0.1):
            await borrow(world, WIDE, [])
        world.driver.gate.set()
        got: list[Snapshot] = []
        await borrow(world, WIDE, got)
        assert (world.driver.boots, len(got)) == (1, 1)


async def test_a_build_that_fails_fails_for_all_and_is_tried_again_by_the_next(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        await world.import_image()
        world.driver.gate, world.driver.fail_with = anyio.Event(), errors.VmmRefused("no", hint="look there")
        failures: list[errors.CasemateError] = []

        async def fail() -> None:
            with pytest.raises(errors.VmmRefused) as raised:
                await borrow(world, WIDE, [])
            failures.append(raised.value)

        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(fail)
            await until(lambda: world.driver.boots)
            world.driver.gate.set()
        assert [(f.message, f.hint) for f in failures] == [("no", "look there")] * 3
        world.driver.fail_with = None
        got: list[Snapshot] = []
        await borrow(world, WIDE, got)
        assert len(got) == 1
        assert [p.name for p in world.host.snapshots.iterdir()] == [got[0].id]


async def test_what_nobody_foresaw_reaches_who_waits_and_the_daemon_lives(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        await world.import_image()
        world.driver.fail_with = RuntimeError("a bug")
        with pytest.raises(errors.CasemateError, match="a bug"):
            await borrow(world, WIDE, [])
        world.driver.fail_with = None
        await borrow(world, WIDE, [])


async def test_without_build_a_missing_one_is_refused_and_one_that_is_there_is_lent(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        await world.import_image()
        with pytest.raises(errors.SnapshotMissing, match="python@1 has no snapshot for 2 vCPU"):
            await borrow(world, WIDE, [], build=False)
        assert world.driver.boots == 0
        await borrow(world, WIDE, [])
        await borrow(world, WIDE, [], build=False)
    async with open_world(tmp_path) as world:  # and by a daemon that has not seen it yet
        await borrow(world, WIDE, [], build=False)
        assert world.driver.boots == 0


async def test_a_boot_that_hangs_is_tried_once_more(tmp_path: Path) -> None:
    async with open_world(tmp_path, boot_timeout_s=0.3) as world:
        await world.import_image()
        world.driver.silent = True
        with pytest.raises(errors.BootTimeout, match="did not answer within"):
            await borrow(world, WIDE, [])
        assert world.driver.boots == 2


async def test_the_least_used_extra_shapes_go_over_the_budget(tmp_path: Path) -> None:
    async with open_world(tmp_path, shape_budget_mib=3) as world:
        version = await world.import_image()
        got: list[Snapshot] = []
        await borrow(world, DEFAULT, got)
        shapes = [Shape(1, 128 + n, 64) for n in range(4)]
        for age, shape in zip((400, 200, 300), shapes[1:], strict=True):
            async with world.images.snapshot_for(TENANT, "python", shape) as snapshot:
                then = snapshot.folder.stat().st_mtime - age
            os.utime(snapshot.folder, (then, then))
        await until(lambda: not world.images.shapes.building)
        await world.images.shapes.prune_over_budget()
        left = {stored.shape for stored in await world.images.shapes.stored(version)}
        assert left == {DEFAULT, shapes[2], shapes[3]}  # 1.3 MB each; the one used longest ago made room
        assert {p.name for p in world.host.snapshots.iterdir()} == {
            s.row.id for s in await world.images.shapes.stored(version)
        }


async def test_what_is_lent_or_stood_on_is_never_dropped(tmp_path: Path) -> None:
    async with open_world(tmp_path, shape_budget_mib=0) as world:
        version = await world.import_image()
        async with AsyncExitStack() as held:
            lent = await held.enter_async_context(world.images.snapshot_for(TENANT, "python", WIDE))
            await until(lambda: not world.images.shapes.building)
            assert await world.images.shapes.prune_over_budget() == []
            assert lent.folder.is_dir()
            await world.stand_on(lent.id, "work")
        assert await world.images.shapes.prune_over_budget() == []
        async with world.images.snapshot_for(TENANT, "python", WIDE, build=False) as again:
            assert again.id == lent.id
        await world.stand_on(lent.id, "work", state="terminated")
        assert await world.images.shapes.prune_over_budget() == [lent.id]
        assert not lent.folder.exists()
        assert await world.images.shapes.stored(version) == []
        await borrow(world, WIDE, [])  # and it is built anew
        assert world.driver.boots == 2


async def test_a_daemon_that_stops_gives_its_builds_up_and_says_so(tmp_path: Path) -> None:
    failures: list[BaseException] = []
    async with anyio.create_task_group() as tasks, open_world(tmp_path) as world:
        await world.import_image()
        world.driver.gate = anyio.Event()

        async def wait() -> None:
            with pytest.raises(errors.HostFull) as raised:
                await borrow(world, WIDE, [])
            failures.append(raised.value)

        tasks.start_soon(wait)
        await until(lambda: world.driver.boots)
    assert "the daemon is stopping" in str(failures[0])
    assert list((tmp_path / "snapshots").iterdir()) == []
