"""An image version becomes a snapshot: boot, introduce, warm, stop, keep.

The one place where a machine boots. Everything is made in a folder with a temporary name, on
which nothing else may stand, and renamed when it is whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import anyio
import structlog

from casemate import errors
from casemate.host import own_folder
from casemate.images import Artifacts, copy_disk, make_scratch_disk
from casemate.sandbox import Introduction, Link, Seal, Shape, Snapshot, introduce, machine_spec, new_id
from casemate.sandbox.snapshot import WORKING_SET
from casemate.vmm import Driver, Kernel, Machine, Platform

log = structlog.get_logger()
Progress = Callable[[str, str, float | None], None]
BUILDING = ".building-"
HASH_BYTES = 4 << 20
FOLDER_MODE = 0o710  # a VMM's uid passes through by its group to the files bound into its jail
PREPARE_S = 180.0  # numpy, pandas and matplotlib take 6 to 20 s to import under emulation


@dataclass(frozen=True, slots=True)
class Recipe:
    """What one snapshot is made from."""

    image: str  # name@version
    shape: Shape
    artifacts: Artifacts
    tenant: str
    zygote: bool = True


@dataclass(frozen=True, slots=True)
class Place:
    """Where snapshots are made, by what, and who vouches for them."""

    driver: Driver
    snapshots: Path
    seal: Seal
    boot_timeout_s: float


async def build_snapshot(place: Place, recipe: Recipe, progress: Progress) -> Snapshot:
    """A new snapshot, of which a clone has answered. Cancelled or failed: nothing of it stays.

    A boot that hangs is tried again. Raises BootTimeout or AgentSilent (evidence: the console's last lines),
    VmmError, HostError.
    """
    try:
        return await _build(place, recipe, progress)
    except (errors.BootTimeout, ExceptionGroup) as raised:  # a task group wraps what ends it
        error = the_error(raised)
        if not isinstance(error, errors.BootTimeout):
            raise
        log.warning("a boot got no answer; trying once more", image=recipe.image, **error.evidence)
    return await _build(place, recipe, progress)


def the_error(raised: BaseException) -> BaseException:
    """What task groups wrapped, where it is one only."""
    while isinstance(raised, BaseExceptionGroup) and len(raised.exceptions) == 1:
        raised = raised.exceptions[0]
    return raised


async def _build(place: Place, recipe: Recipe, progress: Progress) -> Snapshot:
    driver, snapshots = place.driver, place.snapshots
    snapshot_id, platform = new_id(), await driver.platform()
    started = time.monotonic()
    async with own_folder(snapshots / f"{BUILDING}{snapshot_id}", FOLDER_MODE) as folder:
        progress("disk", "making the writable disk", 0.0)
        await anyio.to_thread.run_sync(make_scratch_disk, folder / "disk", recipe.shape.disk_mib)
        async with _booted(driver, recipe, folder, progress, place.boot_timeout_s) as (machine, link):
            progress("warm", "starting the interpreters", 0.3)
            await _prepare(link, machine, recipe)
            progress("save", "saving the machine", 0.8)
            await machine.pause()
            await machine.save_state(folder / "state")
        progress("digest", "taking digests", 0.9)
        digests = await anyio.to_thread.run_sync(_seal, folder)
        snapshot = _describe(snapshot_id, recipe, platform, snapshots / snapshot_id, digests)
        progress("prove", "starting a clone of it", 0.95)
        await _prove(driver, replace(snapshot, folder=folder), place.boot_timeout_s)
        await anyio.to_thread.run_sync(write_manifest, folder, snapshot, place.seal)
        folder.rename(snapshot.folder)
    progress("done", f"snapshot {snapshot_id} in {time.monotonic() - started:.1f} s", 1.0)
    return snapshot


@asynccontextmanager
async def _booted(
    driver: Driver, recipe: Recipe, folder: Path, progress: Progress, timeout_s: float
) -> AsyncIterator[tuple[Machine, Link]]:
    """A booted guest that has been introduced, to nobody: all its secrets are thrown away ones."""
    parts, guest_id = recipe.artifacts, folder.name.removeprefix(BUILDING)
    spec = machine_spec(guest_id, recipe.shape, parts.root, parts.agent, folder / "disk")
    kernel = Kernel(parts.kernel, parts.initrd, driver.kernel_arguments)
    progress("boot", f"booting Linux {parts.kernel_release}", 0.1)
    async with driver.boot(spec, kernel, folder / "memory") as machine, anyio.create_task_group() as tasks:
        link = Link(guest_id, silence_s=timeout_s)
        tasks.start_soon(link.run, machine.stream)
        try:
            await introduce(link, Introduction(secrets.token_hex(13)), timeout_s)
        except errors.AgentSilent as error:
            console = (await machine.console())[-4000:].decode(errors="replace")
            raise errors.BootTimeout(
                f"the guest of {recipe.image} did not answer within {timeout_s:g} s of its boot",
                hint="what its console said last comes with this",
                evidence={"console": console},
            ) from error
        yield machine, link
        tasks.cancel_scope.cancel()


async def _prepare(link: Link, machine: Machine, recipe: Recipe) -> None:
    try:
        async with link.open("control", {"op": "prepare", "zygote": recipe.zygote}, timeout_s=PREPARE_S):
            pass
        async with link.open("control", {"op": "sync"}, timeout_s=60):
            pass
        await link.ping()
    except errors.GuestError as error:
        error.evidence.setdefault("console", (await machine.console())[-4000:].decode(errors="replace"))
        raise


async def _prove(driver: Driver, snapshot: Snapshot, timeout_s: float) -> None:
    """A clone of it takes the hand-shake and answers: until one has, what it replaces is kept.

    Raises VmmError, AgentSilent, ProtocolViolation. The clone and its disk are gone afterwards.
    """
    guest_id, disk = new_id(), snapshot.folder / "disk-of-the-proof"
    try:
        await anyio.to_thread.run_sync(copy_disk, snapshot.disk, disk)
        spec = snapshot.machine(guest_id, disk)
        async with driver.restore(spec, snapshot.files) as machine, anyio.create_task_group() as tasks:
            await machine.unpause()
            link = Link(guest_id, silence_s=timeout_s)
            tasks.start_soon(link.run, machine.stream)
            await introduce(link, Introduction(guest_id), timeout_s)
            await link.ping(timeout_s=timeout_s)
            await machine.record_working_set(snapshot.files.memory, snapshot.folder / WORKING_SET)
            tasks.cancel_scope.cancel()
    finally:
        disk.unlink(missing_ok=True)


def _seal(folder: Path) -> dict[str, str]:
    """Make what clones map and copy unchangeable, durable and known by digest."""
    digests = {}
    for name in ("memory", "state", "disk"):
        path = folder / name
        path.chmod(0o444)
        with path.open("rb") as file:
            os.fsync(file.fileno())
            digests[name] = _sha256(path)
    return digests


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while piece := file.read(HASH_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def _describe(
    snapshot_id: str, recipe: Recipe, platform: Platform, folder: Path, digests: Mapping[str, str]
) -> Snapshot:
    return Snapshot(
        id=snapshot_id,
        image=recipe.image,
        shape=recipe.shape,
        platform=platform,
        kernel_release=recipe.artifacts.kernel_release,
        folder=folder,
        root=recipe.artifacts.root,
        agent=recipe.artifacts.agent,
        digests=digests,
        tenant=recipe.tenant,
    )


def write_manifest(folder: Path, snapshot: Snapshot, seal: Seal) -> None:
    path = folder / "manifest.json"
    with path.open("x") as file:
        json.dump(snapshot.manifest(seal), file, indent=1, sort_keys=True)
        file.flush()
        os.fsync(file.fileno())
    path.chmod(0o444)
