"""create → exec → kill, given up at every single point where it waits: nothing stays, and the next one works.

Every wait of every task is counted, the supervisor's and the guest's too; at the k-th the caller is cancelled.
k goes from the first to the last.
"""

from __future__ import annotations

import asyncio
import os
import types
from collections.abc import AsyncIterator, Callable, Coroutine, Generator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import pytest
from tests.fakes.fake_vmm import PLATFORM, FakeDriver

from casemate import errors, storage
from casemate.sandbox import Sandboxes, SandboxInfo, SandboxSpec, Shape, Snapshot, State, execs, open_sandboxes
from casemate.sandbox.index import Index
from casemate.sandbox.supervisor import Supervisor

TENANT = "t"
SHAPE = Shape(1, 128, 64)


@dataclass
class World:
    sandboxes: Sandboxes
    index: Index
    folders: Path
    known: list[str] = field(default_factory=list)  # whose create has returned: their callers have to kill them

    async def settle(self) -> None:
        """Wait until nothing lives that nobody knows of; then end what is known."""
        with anyio.fail_after(20):
            while {info.id for info in await self.sandboxes.list(TENANT)} - set(self.known):
                await anyio.sleep(0.001)
            for sandbox_id in self.known:
                await self.sandboxes.kill(TENANT, sandbox_id)
            self.known.clear()
            while self.sandboxes.count_live():
                await anyio.sleep(0.001)


@asynccontextmanager
async def open_world(folder: Path) -> AsyncIterator[World]:
    snapshot_folder, folders = folder / "snapshot", folder / "sandboxes"
    snapshot_folder.mkdir()
    folders.mkdir()
    for name in ("memory", "state", "disk", "root", "agent"):
        (snapshot_folder / name).write_bytes(name.encode())
    root, agent = snapshot_folder / "root", snapshot_folder / "agent"
    snapshot = Snapshot("s", "python@1", SHAPE, PLATFORM, "6.12", snapshot_folder, root, agent, {})
    database = storage.open(folder / "casemate.db")

    @asynccontextmanager
    async def find(
        _tenant: str, _image: str, _shape: Shape, *, build: bool, progress: object
    ) -> AsyncIterator[Snapshot]:
        await anyio.lowlevel.checkpoint()
        yield snapshot

    async def no_violation(info: SandboxInfo, error: errors.CasemateError) -> None:
        pytest.fail(f"{info.id}: {error}")

    try:
        index = Index(database, "host")
        supervisor = Supervisor(FakeDriver(), index, folders, 10.0, no_violation)
        async with open_sandboxes(supervisor, index, find, SHAPE) as sandboxes:
            yield World(sandboxes, index, folders)
    finally:
        database.close()


async def life(world: World) -> None:
    handle = await world.sandboxes.create(TENANT, SandboxSpec("python"))
    world.known.append(handle.info.id)
    async with execs.start(handle.link, execs.ExecSpec(("echo", "hello"))) as running:
        while isinstance(await running.read(), execs.Output):
            pass
    await world.sandboxes.kill(TENANT, handle.info.id)


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


async def sweep(world: World) -> int:
    """The number of points it was given up at."""
    steps = Steps()
    steps.install()
    await life(world)  # threads, caches and connections that stay are there from now on
    await world.settle()
    before, k = descriptors(), 0
    while True:
        k += 1
        with anyio.CancelScope() as scope:
            steps.arm(k, scope.cancel)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(life, world)
        reached, _ = steps.count, steps.arm(0, lambda: None)
        await world.settle()
        assert list(world.folders.iterdir()) == [], f"step {k} left a folder"
        assert await world.index.unfinished() == [], f"step {k} left a sandbox that is not terminated"
        assert descriptors() <= before, f"step {k} left a descriptor"
        if reached < k:
            return k - 1


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
