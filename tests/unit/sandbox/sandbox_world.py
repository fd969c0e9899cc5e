"""The real supervisor, index and links over the fake VMM, for what a real machine would take too long for."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import anyio
import anyio.lowlevel
from tests.databases import open_new
from tests.fakes.fake_vmm import PLATFORM, FakeDriver

from casemate import audit
from casemate.sandbox import (
    Admission,
    Amount,
    Kit,
    Made,
    Records,
    Resumer,
    Sandboxes,
    Seal,
    Shape,
    ShapeWish,
    Snapshot,
    Starter,
    Supervisor,
    Suspender,
    open_sandboxes,
)
from casemate.sandbox.index import Index
from casemate.sandbox.plan import Reach, pass_by
from casemate.vmm import Kernel

TENANT = "t"
SHAPE = Shape(1, 128, 64)


@dataclass
class World:
    sandboxes: Sandboxes
    index: Index
    folders: Path
    admission: Admission
    driver: FakeDriver
    snapshot: Snapshot  # what every image means at the moment
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


@dataclass
class FakeGround:
    """What suspended sandboxes stand on, with nothing to judge."""

    base: Snapshot

    async def check(self, made: Made, what: str) -> None:
        await anyio.lowlevel.checkpoint()

    async def snapshot(self, tenant: str, snapshot_id: str) -> Snapshot:
        await anyio.lowlevel.checkpoint()
        return self.base

    async def kit(self, owners: Sequence[str], image: str) -> Kit:
        base = self.base
        kernel = Kernel(base.root, base.root, "")
        return Kit(kernel, base.kernel_release, base.root, base.agent, base.platform)


@asynccontextmanager
async def open_world(
    folder: Path,
    *,
    room: int = 50,
    wait_s: float = 0,
    driver: FakeDriver | None = None,
    reach: Reach = pass_by,
    agent_timeout_s: float = 10,
) -> AsyncIterator[World]:
    """*room*: for how many sandboxes at once. *reach*: what happens at the steps of the plans."""
    snapshot_folder, folders = folder / "snapshot", folder / "sandboxes"
    snapshot_folder.mkdir()
    folders.mkdir()
    (folder / "snapshots").mkdir()
    for name in ("memory", "state", "disk", "root", "agent"):
        (snapshot_folder / name).write_bytes(name.encode())
    root, agent = snapshot_folder / "root", snapshot_folder / "agent"
    snapshot = Snapshot("s", "python@1", SHAPE, PLATFORM, "6.12", snapshot_folder, root, agent, {"memory": "0" * 64})
    database = open_new(folder / "casemate.db")

    worlds: list[World] = []

    @asynccontextmanager
    async def find(
        _tenant: str, _image: str, shape: Shape | ShapeWish, *, build: bool, progress: object
    ) -> AsyncIterator[Snapshot]:
        await anyio.lowlevel.checkpoint()
        shape = shape.filled(SHAPE) if isinstance(shape, ShapeWish) else shape
        found = worlds[0].snapshot if worlds else snapshot
        yield found if shape == SHAPE else replace(found, id=f"{found.id}-{shape.memory_mib}", shape=shape)

    try:
        index = Index(database, "host")
        admission = Admission(Amount(room * 100, 10_000), commit_ratio=0.25, wait_s=wait_s)
        records = Records(index, audit.Trail(database, "host"), folders)
        driver = driver or FakeDriver()
        starter, seal = Starter(driver, records, admission, agent_timeout_s), Seal(bytes(32))
        supervisor = Supervisor(starter, Suspender(records, seal), Resumer(starter, seal, FakeGround(snapshot)), reach)
        async with open_sandboxes(supervisor, index, find, snapshots=folder / "snapshots") as sandboxes:
            worlds.append(World(sandboxes, index, folders, admission, driver, snapshot))
            yield worlds[0]
    finally:
        database.close()
