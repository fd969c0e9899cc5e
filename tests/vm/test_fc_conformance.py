"""The Firecracker driver keeps the contract, with the guest that sandboxes have: where KVM runs one.

Elsewhere it is skipped, with the doctor's reason; what can be seen of the driver there is in ``tests/firecracker``.
``make test-kvm`` runs just this.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import anyio
import pytest
from machines import TEST_UIDS, introduced
from tests.conformance.check_vmm import CHECKS, Bench
from vm_world import new_home

from casemate import errors
from casemate.config import Settings, load
from casemate.host import open_launcher, start_launcher
from casemate.images import Workshop, copy_disk, make_scratch_disk
from casemate.posture import find_verdict
from casemate.vmm import Drive, Kernel, MachineSpec, SnapshotFiles
from casemate.vmm.firecracker.builds import Build, find_build
from casemate.vmm.firecracker.driver import FirecrackerDriver

MEMORY_MIB, DISK_MIB = 512, 256
BOOT_S = 60.0


@dataclass(frozen=True)
class Made:
    """What every check starts from: a home, and the snapshot of a guest that was booted in it."""

    settings: Settings
    build: Build
    kernel: Kernel
    template: SnapshotFiles
    disk: Path
    spec: MachineSpec


@pytest.fixture(scope="module")
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    verdict = find_verdict(load().run)
    if not verdict.usable:
        pytest.skip(f"KVM runs no Linux guest here: {verdict.found}")
    try:
        build = find_build(load().home / "vmm")
    except errors.ToolMissing:
        build = request.getfixturevalue("firecracker")
    folder = tmp_path_factory.mktemp("firecracker")
    home = new_home(folder)
    settings = replace(load(home=home), uid_base=TEST_UIDS)
    settings.run.mkdir(mode=0o700, exist_ok=True)
    return anyio.run(_make, settings, build, folder)


@asynccontextmanager
async def open_firecracker(settings: Settings, build: Build) -> AsyncIterator[FirecrackerDriver]:
    async with open_launcher(start_launcher(settings)) as launcher:
        yield FirecrackerDriver(settings, launcher, build)


async def _make(settings: Settings, build: Build, folder: Path) -> Made:
    parts = Workshop(settings.home).prepare("python")
    template, disk = SnapshotFiles(folder / "memory", folder / "state"), folder / "disk"
    booted = folder / "booted"
    make_scratch_disk(booted, DISK_MIB)
    drives = (Drive(parts.root), Drive(parts.agent), Drive(booted, writable=True))
    spec = MachineSpec("template", 1, MEMORY_MIB, drives)
    async with open_firecracker(settings, build) as driver:
        kernel = Kernel(parts.kernel, parts.initrd, driver.kernel_arguments)
        async with driver.boot(spec, kernel, template.memory) as machine:
            async with introduced(machine, spec.guest_id, BOOT_S):
                pass
            await machine.pause()
            await machine.save_state(template.state)
            copy_disk(booted, disk)
    return Made(
        settings, build, kernel, template, disk, replace(spec, drives=(*drives[:2], Drive(disk, writable=True)))
    )


@pytest.mark.vm
@pytest.mark.kvm
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_contract_of_firecracker(
    check: Callable[[Bench], Awaitable[None]], made: Made, tmp_path: Path, no_trace: None
) -> None:
    async def run() -> None:
        async with open_firecracker(made.settings, made.build) as driver:
            await check(Bench(driver, made.kernel, made.template, made.disk, made.spec, tmp_path))

    anyio.run(run)
