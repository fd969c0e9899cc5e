"""Tiny guests under the driver: jailed as every machine is, and nothing of Linux in them."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import anyio
from tests.firecracker.guests import GuestMemory

from casemate.config import load
from casemate.host import Launcher, open_launcher, start_launcher
from casemate.vmm import Drive, Kernel, MachineSpec, SnapshotFiles
from casemate.vmm.firecracker.builds import Build
from casemate.vmm.firecracker.driver import FirecrackerDriver
from casemate.vmm.firecracker.machine import FirecrackerMachine

TEST_UIDS = 2_100_200_000  # another range than that of other machines under test
MEMORY_MIB = 128
DRIVE_BYTES = 1 << 20
Opened = AbstractAsyncContextManager[FirecrackerMachine]


@dataclass
class Ground:
    """A driver, and *folder*, where its machines' files are."""

    driver: FirecrackerDriver
    launcher: Launcher
    guests: Path
    folder: Path
    exchanges: Path  # where each VMM has a folder of its own
    _numbers: itertools.count[int] = field(default_factory=itertools.count)

    def spec(self) -> MachineSpec:
        """Of a machine with three drives of its own, the last one writable."""
        number = next(self._numbers)
        drives = [self.folder / f"{number}-drive{place}" for place in range(3)]
        for drive in drives:
            drive.write_bytes(bytes(DRIVE_BYTES))
        writable = (False, False, True)
        return MachineSpec(f"tiny{number}", 1, MEMORY_MIB, tuple(map(Drive, drives, writable)))

    def boot(self, guest: str, memory: str = "memory") -> Opened:
        initrd = self.folder / "initrd"
        initrd.write_bytes(b"nothing that a guest of ours would read")
        kernel = Kernel(self.guests / guest, initrd, self.driver.kernel_arguments)
        return self.driver.boot(self.spec(), kernel, self.folder / memory)

    async def save(self, guest: str = "counter") -> SnapshotFiles:
        """A snapshot of *guest*, as it was when it had its board."""
        files = SnapshotFiles(self.folder / "memory", self.folder / "state")
        async with self.boot(guest) as machine:
            await memory_of(machine)
            await machine.pause()
            await machine.save_state(files.state)
        for path in (files.memory, files.state):
            path.chmod(0o444)
        return files

    def restore(self, snapshot: SnapshotFiles, **more: Path | str | None) -> Opened:
        return self.driver.restore(self.spec(), snapshot, **more)  # type: ignore[arg-type]


async def memory_of(machine: FirecrackerMachine) -> GuestMemory:
    return await anyio.to_thread.run_sync(GuestMemory, machine.pid)


@asynccontextmanager
async def open_ground(build: Build, guests: Path, home: Path) -> AsyncIterator[Ground]:
    settings = replace(load(home=home / "home"), uid_base=TEST_UIDS)
    settings.home.mkdir(parents=True, exist_ok=True)
    async with open_launcher(start_launcher(settings)) as launcher:
        yield Ground(FirecrackerDriver(settings, launcher, build), launcher, guests, home, settings.run / "vmm")


def drive(build: Build, guests: Path, home: Path, body: Callable[[Ground], Awaitable[None]]) -> None:
    """*body* with a driver of *build* whose machines live in *home*."""

    async def run() -> None:
        async with open_ground(build, guests, home) as ground:
            await body(ground)

    anyio.run(run)
