"""Images by name, and the snapshot that a create needs: found, or built once for all who wait."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import anyio
import structlog

from casemate import errors
from casemate.build.snapshot import BUILDING, Progress, Recipe, build_snapshot
from casemate.host import remove_folder
from casemate.images import Artifacts, Bootstrap, Identities, Workshop, digest_of
from casemate.sandbox import Shape, Snapshot
from casemate.storage import Database, SnapshotRow, VersionRow
from casemate.storage import images as rows
from casemate.vmm import Driver

log = structlog.get_logger()
BUILT_IN = "system"  # the tenant that the images we come with belong to; everybody may use them
BUILT_IN_NAMES = ("python",)
PARTS = ("kernel", "initrd", "root", "agent")


@dataclass(frozen=True, slots=True)
class BuildHost:
    """What building needs of this host. The workshop's calls block and run in a worker thread."""

    driver: Driver
    database: Database
    workshop: Workshop
    bootstrap: Bootstrap
    snapshots: Path
    verified: Identities
    host_id: str
    default_shape: Shape
    boot_timeout_s: float

    def gather(self, name: str, force: bool, progress: Progress) -> Artifacts:
        return self.workshop.prepare(name, force=force, progress=progress, bootstrap=self.bootstrap)

    def artifacts(self, version: VersionRow) -> Artifacts:
        """A version's artifacts, with the agent disk of today: the agent belongs to us, not to the image."""
        stored = version.artifacts
        return Artifacts(
            **{part: self.workshop.store.path(stored[part]) for part in ("kernel", "initrd", "root")},
            agent=self.workshop.agent(),
            kernel_release=stored["kernel_release"],
        )


class Images:
    """Made once by the daemon; every method may be called from any of its tasks."""

    def __init__(self, host: BuildHost) -> None:
        self._host = host
        self._building: dict[str, anyio.Lock] = {}
        self._known: dict[tuple[int, Shape], Snapshot] = {}

    async def start(self) -> list[str]:
        """Forget what an earlier daemon was in the middle of building; the folders' names."""
        left = sorted(self._host.snapshots.glob(f"{BUILDING}*"))
        for folder in left:
            await anyio.to_thread.run_sync(remove_folder, folder)
        await self._host.database.write(rows.fail_unfinished, "the daemon that built it died")
        return [folder.name for folder in left]

    # ------------------------------------------------------------------ what a create asks for

    async def snapshot_for(self, tenant: str, ref: str, shape: Shape) -> Snapshot:
        """The snapshot of image *ref* in that shape for this host, built when there is none.

        Raises NotFound for the image; what building raises.
        """
        version = await self._version(tenant, ref)
        if known := self._known.get((version.id, shape)):
            return known
        async with self._one_at_a_time(f"{version.id}/{shape}"):
            if known := self._known.get((version.id, shape)):
                return known
            snapshot = await self._find(version, shape) or await self._build(version, shape, _log_progress)
            self._known[version.id, shape] = snapshot
            return snapshot

    async def build(self, tenant: str, name: str, force: bool, progress: Progress) -> dict[str, Any]:
        """Make image *name* usable: its artifacts, and a snapshot of the default shape; nothing twice.

        *force* makes a new version even where the last one is good.
        Raises NotFound, HostError, VmmError, GuestError.
        """
        if name not in BUILT_IN_NAMES:
            raise errors.NotFound(
                f"there is no recipe for an image {name[:80]!r}", hint=f"known: {', '.join(BUILT_IN_NAMES)}"
            )
        progress = _from_any_thread(progress)
        async with self._one_at_a_time(f"image {name}"):
            version = None if force else await self._usable(name)
            if version is None:
                version = await self._new_version(name, force, progress)
            await self._snapshot_of(version, self._host.default_shape, progress)
        return await self.get(tenant, version.reference)

    # ------------------------------------------------------------------------ what a list shows

    async def list(self, tenant: str) -> list[dict[str, Any]]:
        found = []
        for owner in {tenant, BUILT_IN}:
            for version in await self._host.database.read(rows.versions, owner):
                found.append(await self._describe(version))
        return sorted(found, key=lambda image: (image["name"], image["version"]))

    async def get(self, tenant: str, ref: str) -> dict[str, Any]:
        """One version whole: its artifacts, its platform, and how a clone of it is started."""
        version = await self._version(tenant, ref)
        body = await self._describe(version)
        body["config"], body["artifacts"] = dict(version.config), dict(version.artifacts)
        body["platform"] = asdict(await self._host.driver.platform())
        snapshot = await self._find(version, self._host.default_shape)
        if snapshot is not None:
            example = snapshot.machine("example", Path("/disk"))
            body["clone"] = dict(self._host.driver.describe(example, snapshot.files)) | {
                "snapshot": snapshot.id,
                "disk": str(snapshot.disk),
            }
        return body

    # -------------------------------------------------------------------------------- the steps

    async def _version(self, tenant: str, ref: str) -> VersionRow:
        name, _, number = ref.partition("@")
        name = name.removesuffix(":latest")
        if number and not number.isdecimal():
            raise errors.InvalidSpec(f"image {ref[:80]!r}: what follows @ is a version's number")
        wanted = int(number) if number else None
        try:
            return await self._host.database.read(rows.version, tenant, name, wanted)
        except errors.NotFound:
            return await self._host.database.read(rows.version, BUILT_IN, name, wanted)

    async def _usable(self, name: str) -> VersionRow | None:
        """The active version, if all its artifacts are here."""
        try:
            version = await self._host.database.read(rows.version, BUILT_IN, name)
        except errors.NotFound:
            return None
        whole = version.state == "ready" and all(
            self._host.workshop.store.has(version.artifacts[part]) for part in PARTS[:3]
        )
        return version if whole else None

    async def _new_version(self, name: str, force: bool, progress: Progress) -> VersionRow:
        database = self._host.database
        config = {"built_in": name, "user": "user", "cwd": "/home/user"}
        version = await database.write(rows.add_version, BUILT_IN, self._host.host_id, name, config)
        await database.write(rows.update_version, version.id, state="building")
        try:
            parts = await anyio.to_thread.run_sync(self._host.gather, name, force, progress)
        except BaseException as error:
            with anyio.CancelScope(shield=True), anyio.move_on_after(5):
                await database.write(rows.update_version, version.id, state="failed", log=str(error))
            raise
        size_bytes = sum(getattr(parts, part).stat().st_size for part in PARTS)
        artifacts = {**parts.digests, "kernel_release": parts.kernel_release}
        await database.write(rows.update_version, version.id, state="ready", artifacts=artifacts, size_bytes=size_bytes)
        await database.write(rows.activate, version.id)
        return await database.read(rows.version, BUILT_IN, name, version.number)

    async def _snapshot_of(self, version: VersionRow, shape: Shape, progress: Progress) -> None:
        async with self._one_at_a_time(f"{version.id}/{shape}"):
            snapshot = await self._find(version, shape)
            if snapshot is None:
                snapshot = await self._build(version, shape, progress)
            self._known[version.id, shape] = snapshot

    async def _find(self, version: VersionRow, shape: Shape) -> Snapshot | None:
        """A stored snapshot that fits shape, platform, artifacts and today's agent; else None."""
        platform = await self._host.driver.platform()
        parts = await anyio.to_thread.run_sync(self._host.artifacts, version)
        for row in reversed(await self._host.database.read(rows.snapshots_of, version.id)):
            if row.state != "ready" or (row.vcpus, row.memory_mib, row.disk_mib) != _numbers(shape):
                continue
            try:
                snapshot = Snapshot.read(self._host.snapshots / row.id)
                fits = snapshot.platform == platform and (snapshot.root, snapshot.agent) == (
                    parts.root,
                    parts.agent,
                )
                if fits and await anyio.to_thread.run_sync(self._is_whole, snapshot):
                    return snapshot
            except errors.ImageBroken as error:
                log.warning("a snapshot cannot be used and is built again", snapshot=row.id, error=error.message)
        return None

    async def _build(self, version: VersionRow, shape: Shape, progress: Progress) -> Snapshot:
        parts = await anyio.to_thread.run_sync(self._host.artifacts, version)
        recipe = Recipe(version.reference, shape, parts)
        snapshot = await build_snapshot(
            self._host.driver,
            recipe,
            self._host.snapshots,
            progress,
            boot_timeout_s=self._host.boot_timeout_s,
        )
        row = SnapshotRow(
            id=snapshot.id,
            tenant=version.tenant,
            host_id=self._host.host_id,
            version_id=version.id,
            vcpus=shape.vcpus,
            memory_mib=shape.memory_mib,
            disk_mib=shape.disk_mib,
            platform=asdict(snapshot.platform),
            state="ready",
            memory_bytes=snapshot.files.memory.stat().st_blocks * 512,
        )
        with anyio.CancelScope(shield=True):
            await self._host.database.write(rows.put_snapshot, row)
            await self._drop_superseded(version, shape, keep=snapshot.id)
            await anyio.to_thread.run_sync(self._is_whole, snapshot)
        return snapshot

    async def _drop_superseded(self, version: VersionRow, shape: Shape, keep: str) -> None:
        """What no longer fitted has a successor now; running clones hold its files open themselves."""
        for row in await self._host.database.read(rows.snapshots_of, version.id):
            if row.id != keep and (row.vcpus, row.memory_mib, row.disk_mib) == _numbers(shape):
                await self._host.database.write(rows.delete_snapshot, row.id)
                await anyio.to_thread.run_sync(remove_folder, self._host.snapshots / row.id)

    def _is_whole(self, snapshot: Snapshot) -> bool:
        """Whether its files are those that were sealed: hashed once after each boot of the host."""
        for name, digest in snapshot.digests.items():
            with (snapshot.folder / name).open("rb") as file:
                if not self._host.verified.recognises(file.fileno(), digest):
                    if digest_of(file.fileno()) != digest:
                        log.error("a snapshot's file was changed", snapshot=snapshot.id, file=name)
                        return False
                    self._host.verified.remember(file.fileno(), digest)
        return True

    async def _describe(self, version: VersionRow) -> dict[str, Any]:
        stored = await self._host.database.read(rows.snapshots_of, version.id)
        keys = ("id", "vcpus", "memory_mib", "disk_mib", "state", "memory_bytes")
        return {
            "name": version.name,
            "version": version.number,
            "state": version.state,
            "active": version.active,
            "created_at": version.created_at,
            "size_bytes": version.size_bytes,
            "snapshots": [{key: getattr(row, key) for key in keys} for row in stored],
        }

    @asynccontextmanager
    async def _one_at_a_time(self, what: str) -> AsyncIterator[None]:
        async with self._building.setdefault(what, anyio.Lock()):
            yield


def _post(loop: asyncio.AbstractEventLoop, progress: Progress, *news: Any) -> None:
    loop.call_soon_threadsafe(progress, *news)


def _from_any_thread(progress: Progress) -> Progress:
    """Gathering artifacts runs in a worker thread; its listener lives in the event loop."""
    loop = asyncio.get_running_loop()
    return lambda step, message, fraction: _post(loop, progress, step, message, fraction)


def _numbers(shape: Shape) -> tuple[int, int, int]:
    return shape.vcpus, shape.memory_mib, shape.disk_mib


def _log_progress(step: str, message: str, fraction: float | None) -> None:
    log.info("building a snapshot", step=step, message=message)
