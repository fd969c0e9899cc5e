"""create → exec → kill, given up at every single point where it waits: nothing stays, and the next one works.

Every wait of every task is counted, the supervisor's and the guest's too; at the k-th the caller is cancelled.
k goes from the first to the last.
"""

from __future__ import annotations

import asyncio
import os
import types
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import pytest
from sandbox_world import TENANT, World, open_world

from casemate import errors
from casemate.sandbox import Amount, Handle, SandboxSpec, State, execs, starting


async def life(world: World) -> None:
    handle = await world.sandboxes.create(TENANT, SandboxSpec("python"))
    world.known.append(handle.info.id)
    async with execs.start(handle.link, execs.ExecSpec(("echo", "hello"))) as running:
        while isinstance(await running.read(), execs.Output):
            pass
    await world.sandboxes.kill(TENANT, handle.info.id)


async def life_with_a_rest(world: World) -> None:
    handle = await world.sandboxes.create(TENANT, SandboxSpec("python"))
    world.known.append(handle.info.id)
    await handle.suspend()
    await handle.resume()
    await answers(handle)
    await world.sandboxes.kill(TENANT, handle.info.id)


async def answers(handle: Handle) -> None:
    async with handle.reach() as link, execs.start(link, execs.ExecSpec(("echo", "hello"))) as running:
        assert isinstance(found := await running.read(), execs.Output)
        assert found.data == b"hello"


async def still_answer(world: World) -> None:
    """Whoever gave up: each sandbox that its caller knows of runs or rests, and answers."""
    for sandbox_id in world.known:
        with suppress(errors.NotFound), anyio.fail_after(10):
            handle = world.sandboxes.get(TENANT, sandbox_id)
            if not handle._stop.is_set():  # its kill was under way
                await answers(handle)


class Steps:
    """Counts how often any task of the loop waits, and calls *at* when one does for the *k*-th time."""

    def __init__(self) -> None:
        self.count = self.k = 0
        self.at: Callable[[], None] = lambda: None

    def install(self) -> None:
        asyncio.get_running_loop().set_task_factory(
            lambda loop, work, **more: asyncio.Task(self._through(work), loop=loop, **more)  # type: ignore[arg-type]
        )

    def arm(self, k: int, at: Callable[[], None]) -> None:
        self.count, self.k, self.at = 0, k, at

    async def _through(self, work: Coroutine[Any, Any, Any]) -> Any:
        return await self._step(work)

    @types.coroutine
    def _step(self, work: Coroutine[Any, Any, Any]) -> Generator[Any, Any, Any]:
        failure: BaseException | None = None
        while True:
            try:
                wanted = work.send(None) if failure is None else work.throw(failure)
            except StopIteration as done:
                return done.value
            self.count += 1
            if self.count == self.k:
                self.at()
            try:
                yield wanted
                failure = None
            except BaseException as error:  # a cancellation goes on into the work
                failure = error


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


async def sweep(world: World, life: Callable[[World], Awaitable[None]] = life, every: int = 1) -> int:
    """The last point it was given up at."""
    steps = Steps()
    steps.install()
    await life(world)  # threads, caches and connections that stay are there from now on
    await world.settle()
    before, k = descriptors(), 0
    while True:
        k += every
        with anyio.CancelScope() as scope:
            steps.arm(k, scope.cancel)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(life, world)
        reached, _ = steps.count, steps.arm(0, lambda: None)
        await still_answer(world)
        await world.settle()
        assert list(world.folders.iterdir()) == [], f"step {k} left a folder"
        assert await world.index.unfinished() == [], f"step {k} left a sandbox that is not terminated"
        assert descriptors() <= before, f"step {k} left a descriptor"
        assert world.admission.reserved == Amount(0, 0), f"step {k} left a reservation"
        if reached < k:
            return k - every


@pytest.mark.timeout(170)
def test_given_up_at_any_point_nothing_stays(tmp_path: Path, no_trace: None) -> None:
    async def run() -> int:
        async with open_world(tmp_path) as world:
            points = await sweep(world)
            await life(world)
            ended = await world.sandboxes.list(TENANT, include_terminated=True)
            assert {info.state for info in ended} == {State.TERMINATED}
            return points

    assert anyio.run(run) > 30


@pytest.mark.timeout(170)
def test_suspend_and_resume_given_up_at_any_point(
    tmp_path: Path, no_trace: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(starting, "SPARE_DISK_MIB", 0)

    async def run() -> int:
        async with open_world(tmp_path) as world:
            return await sweep(world, life_with_a_rest)

    assert anyio.run(run) > 60


def test_the_daemons_end_ends_them(tmp_path: Path, no_trace: None) -> None:
    async def run() -> None:
        async with open_world(tmp_path) as world:
            for _ in range(3):
                await world.sandboxes.create(TENANT, SandboxSpec("python"))
        assert list(world.folders.iterdir()) == []

    anyio.run(run)


def test_a_name_is_free_again_after_a_cancelled_create(tmp_path: Path, no_trace: None) -> None:
    async def run() -> None:
        async with open_world(tmp_path) as world:
            with anyio.move_on_after(0.01):
                await world.sandboxes.create(TENANT, SandboxSpec("python", name="mine"))
                await anyio.sleep_forever()
            for info in await world.sandboxes.list(TENANT):
                await world.sandboxes.kill(TENANT, info.id)
            await world.settle()
            assert (await world.sandboxes.create(TENANT, SandboxSpec("python", name="mine"))).info.name == "mine"

    anyio.run(run)


def test_one_that_waits_for_room_can_be_killed_and_its_create_says_so(tmp_path: Path, no_trace: None) -> None:
    async def run() -> None:
        async with open_world(tmp_path, room=1, wait_s=3600) as world, anyio.create_task_group() as tasks:
            first = await world.sandboxes.create(TENANT, SandboxSpec("python"))
            refused: list[errors.CasemateError] = []

            async def wait_for_room() -> None:
                try:
                    await world.sandboxes.create(TENANT, SandboxSpec("python", name="second", create_timeout_s=3600))
                except errors.CasemateError as error:
                    refused.append(error)

            tasks.start_soon(wait_for_room)
            while world.admission.to_json()["waiting"] == 0:
                await anyio.sleep(0.001)
            assert (await world.sandboxes.kill(TENANT, "second")).state is State.TERMINATED
            while not refused:
                await anyio.sleep(0.001)
            assert isinstance(refused[0], errors.StateConflict)
            assert world.admission.to_json()["waiting"] == 0
            await world.sandboxes.kill(TENANT, first.info.id)
            assert world.admission.reserved == Amount(0, 0)

    anyio.run(run)
