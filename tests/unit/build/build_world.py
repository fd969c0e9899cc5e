"""Images over the fake VMM: a real store, a real database, builds that take as long as a test says."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import anyio
from tests.databases import open_new
from tests.fakes.fake_vmm import PLATFORM, FakeDriver, FakeMachine

from casemate.audit import Trail
from casemate.build import BuildHost, Images, open_images
from casemate.images import Identities, Progress, Workshop
from casemate.images.rootfs import Recipe
from casemate.sandbox import Shape, open_seal
from casemate.storage import Database, SandboxRow, VersionRow
from casemate.storage import images as rows
from casemate.storage import sandboxes as sandbox_rows
from casemate.vmm import Kernel, MachineSpec, Platform, SnapshotFiles

TENANT = "local"
DEFAULT = Shape(1, 128, 64)
WIDE = Shape(2, 128, 64)
KERNEL_RELEASE = "6.12-fake"


class Bench(Workshop):
    """Its agent disk is a few bytes, and no archive is asked."""

    agent_content = b"agent 1"

    def agent(self, progress: Progress = lambda *_: None) -> Path:
        with self.store.new() as pending:
            pending.path.write_bytes(self.agent_content)
        self._note("agent", "key", {"agent": pending.digest})
        return self.store.path(pending.digest)


class SlowDriver(FakeDriver):
    """Counts its boots; each waits for *gate* when there is one, and fails when *fail_with* is set."""

    def __init__(self) -> None:
        super().__init__()
        self.boots = 0
        self.gate: anyio.Event | None = None
        self.fail_with: Exception | None = None
        self.silent = False  # its guests say nothing
        self.restored: list[tuple[bytes, bytes]] = []  # the memory and the state that a VMM was given
        self.restore_gate: anyio.Event | None = None
        self.refuse_restore: Exception | None = None
        self.now = PLATFORM

    async def platform(self) -> Platform:
        return self.now

    @asynccontextmanager
    async def restore(self, spec: MachineSpec, snapshot: SnapshotFiles) -> AsyncIterator[FakeMachine]:
        self.restored.append((snapshot.memory.read_bytes(), snapshot.state.read_bytes()))
        if self.restore_gate is not None:
            await self.restore_gate.wait()
        if self.refuse_restore is not None:
            raise self.refuse_restore
        async with super().restore(spec, snapshot) as machine:
            yield machine

    @asynccontextmanager
    async def boot(self, spec: MachineSpec, kernel: Kernel, memory: Path) -> AsyncIterator[FakeMachine]:
        self.boots += 1
        if self.gate is not None:
            await self.gate.wait()
        if self.fail_with is not None:
            raise self.fail_with
        async with super().boot(spec, kernel, memory) as machine:
            if self.silent:
                await machine.pause()
            memory.write_bytes(b"memory" * 200_000 + bytes([self.boots]))  # 1.2 MB that a budget counts
            yield machine


@dataclass
class World:
    images: Images
    host: BuildHost
    driver: SlowDriver
    database: Database
    bench: Bench
    said: list[str] = field(default_factory=list)

    def tell(self, step: str, message: str, fraction: float | None) -> None:
        self.said.append(step)

    async def import_image(self, name: str = "python", content: bytes = b"root 1", tenant: str = TENANT) -> VersionRow:
        """A ready version made of a few bytes."""
        store = self.bench.store
        digests = {}
        for part, data in (("kernel", b"kernel"), ("initrd", b"initrd"), ("root", content)):
            with store.new() as pending:
                pending.path.write_bytes(data)
            digests[part] = pending.digest
        artifacts = digests | {"kernel_release": KERNEL_RELEASE}
        config = {"user": "user", "cwd": "/home/user"}
        return await self.database.write(rows.add_imported, tenant, "host", name, config, artifacts, len(content))

    async def stand_on(self, snapshot_id: str, name: str, state: str = "running", **info: str) -> None:
        """What a supervisor records of its sandbox."""
        row = SandboxRow(
            id=f"id-{name}", tenant=TENANT, host_id="host", name=name, image="python@1", snapshot_id=snapshot_id,
            state=state, info=info, created_at=1.0, updated_at=1.0,
        )  # fmt: skip
        await self.database.write(sandbox_rows.put, row)


@asynccontextmanager
async def open_world(home: Path, *, shape_budget_mib: int = 4096, boot_timeout_s: float = 10) -> AsyncIterator[World]:
    for name in ("snapshots", "sandboxes", "vmm", "seal"):
        (home / name).mkdir(parents=True, exist_ok=True)
    database = open_new(home / "casemate.db")
    driver, bench = SlowDriver(), Bench(home)
    host = BuildHost(
        driver=driver,
        database=database,
        workshop=bench,
        bootstrap=no_bootstrap,
        snapshots=home / "snapshots",
        sandboxes=home / "sandboxes",
        vmm_builds=home / "vmm",
        upkeep_report=home / "run" / "upkeep.json",
        seal=open_seal(home),
        trail=Trail(database, "host"),
        verified=Identities(home / "run" / "verified"),
        host_id="host",
        default_shape=DEFAULT,
        boot_timeout_s=boot_timeout_s,
        shape_budget_mib=shape_budget_mib,
    )
    try:
        async with open_images(host) as images:
            yield World(images, host, driver, database, bench)
    finally:
        database.close()


def no_bootstrap(recipe: Recipe, out: Path, on_line: Callable[[str], None]) -> None:
    raise AssertionError("nothing here makes a root disk")
