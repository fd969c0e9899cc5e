"""Snapshots by (version, shape): found, or built once for all who wait; lent out; the least used ones dropped.

    lend ── known? ──────────────────────────────→ lease
      └── under way? join, else start: find or build ┘      prune: not lent, no sandbox stands on it

What is there and fits no more is built again; the old one goes when a clone of the new one has answered.

When a snapshot was last lent is its folder's modification time, so that it outlives the daemon.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import anyio
import structlog
from anyio.abc import TaskGroup

from casemate import errors
from casemate.build.host import BuildHost
from casemate.build.own_shape import check_own_shape, own_row, said, shape_of
from casemate.build.snapshot import BUILDING, PREPARE_S, Place, Progress, Recipe, build_snapshot
from casemate.build.underway import Underway
from casemate.host import remove_folder
from casemate.sandbox import Here, Misfit, Shape, Snapshot, check_fit, sentences, unfit
from casemate.storage import SandboxRow, SnapshotRow, VersionRow, sandboxes
from casemate.storage import images as rows

log = structlog.get_logger()
BUILDS_AT_ONCE = 2  # a build keeps a processor and its guest's memory busy
QUEUE_LIMIT_S = 1800.0
STAMP_EVERY_S = 60.0
DIGEST_LIMIT_S = 300.0
MIB = 2**20
Key = tuple[int, Shape]  # a version's id, and the shape
Identity = tuple[tuple[int, ...], ...]
SPARE_MIB = 256


@dataclass(frozen=True, slots=True)
class Stored:
    """A snapshot's row and what its folder says: bytes on the disk, and when it was last lent."""

    row: SnapshotRow
    folder: Path
    size_bytes: int
    used_at: float

    @property
    def shape(self) -> Shape:
        return Shape(self.row.vcpus, self.row.memory_mib, self.row.disk_mib)


@dataclass(frozen=True, slots=True)
class Rebuild:
    """A snapshot that fits no more and is being built again, or could not be: then with the *failure*."""

    version: VersionRow
    shape: Shape
    why: str
    job: Underway[Snapshot]

    @property
    def shape_said(self) -> str:
        return said(self.shape)


async def _nobody() -> None: ...


class Shapes:
    """Every method may be called from any task. Builds live in *tasks*, not in who asks for them."""

    def __init__(self, host: BuildHost, tasks: TaskGroup) -> None:
        self._host = host
        self._tasks = tasks
        self._known: dict[Key, tuple[Snapshot, Identity]] = {}
        self._underway: dict[Key, Underway[Snapshot]] = {}
        self._turns: dict[Key, anyio.Lock] = {}
        self.rebuilds: dict[Key, Rebuild] = {}  # under way, or failed and not tried again yet
        self.on_rebuild: Callable[[], Awaitable[None]] = _nobody  # one has begun or ended
        self._lent: Counter[str] = Counter()
        self._retired: set[int] = set()
        self._stamped: dict[str, float] = {}
        self._pruning = anyio.Lock()  # two at once would each make the same room
        self._places = anyio.Semaphore(BUILDS_AT_ONCE)

    @property
    def lent(self) -> set[str]:
        return set(self._lent)

    @property
    def building(self) -> bool:
        return bool(self._underway)

    @asynccontextmanager
    async def lend(
        self, version: VersionRow, shape: Shape, *, build: bool = True, progress: Progress | None = None
    ) -> AsyncIterator[Snapshot]:
        """The snapshot of that version and shape, which is not deleted while the block runs.

        Raises SnapshotMissing without *build* where there is none; what building raises; of a session InvalidSpec for
        another shape than its own, Unfit, ImageBroken.
        """
        snapshot = await self._lent_one(version, shape, build, progress)
        try:
            await self._stamp(snapshot)
            yield snapshot
        finally:
            self._return(snapshot.id)

    async def stored_one(self, snapshot_id: str, owners: Sequence[str]) -> Snapshot:
        """The snapshot of that id, of one of the tenants *owners*, whatever it was made with: what is suspended
        stands on it, and it is kept for as long as that lives. Whether it fits is for who asks to ask.

        Raises ImageBroken, SealBroken: then nothing of it may be given to a VMM.
        """
        return await anyio.to_thread.run_sync(self._read_whole, snapshot_id, owners)

    def _read_whole(self, snapshot_id: str, owners: Sequence[str]) -> Snapshot:
        folder = self._host.snapshots / snapshot_id
        for number, owner in enumerate(owners, 1):
            try:
                snapshot = Snapshot.read(folder, self._host.seal, tenant=owner)
            except errors.SealBroken:
                if number == len(owners):
                    raise
                continue
            if self._whole(snapshot) is None:
                raise errors.ImageBroken(
                    f"snapshot {snapshot_id} is not whole: a file of it is gone or was changed",
                    hint="what stands on its memory cannot be resumed; casemate resume --cold starts it from its disk",
                )
            return snapshot
        raise errors.ImageBroken(f"snapshot {snapshot_id} belongs to nobody who asks", hint="see casemate image ls")

    def _return(self, snapshot_id: str) -> None:
        self._lent[snapshot_id] -= 1
        if not self._lent[snapshot_id]:
            del self._lent[snapshot_id]

    async def _lent_one(self, version: VersionRow, shape: Shape, build: bool, progress: Progress | None) -> Snapshot:
        key = (version.id, shape)
        while True:
            if version.id in self._retired:
                raise errors.NotFound(f"image {version.reference} is being removed", hint="casemate image ls")
            if known := self._known_one(key):
                self._lent[known.id] += 1  # nothing waits between looking and taking
                return known
            if version.contains_session_state:
                await self._find_session(version, shape)
                continue
            if not build and key not in self._underway:
                await self._find_or_refuse(version, shape)
                continue
            await self._join(version, shape).wait(progress)

    def _known_one(self, key: Key) -> Snapshot | None:
        """If its files are still those that were looked at; else they are looked at anew, before a VMM gets them."""
        if key not in self._known:
            return None
        snapshot, identity = self._known[key]
        if _identity(snapshot) == identity:
            return snapshot
        log.error("a snapshot's files were touched; they are looked at again", snapshot=snapshot.id)
        del self._known[key]
        return None

    async def rebuild(self, version: VersionRow, shape: Shape) -> None:
        """Find or build it, as for a create; what building raises is in ``rebuilds``, not raised."""
        if version.id in self._retired:
            return
        try:
            await self._join(version, shape).wait(None)
        except errors.CasemateError as error:
            log.error("a snapshot could not be rebuilt; the next create tries again", image=version.reference,
                      shape=said(shape), error=str(error))  # fmt: skip

    def _join(self, version: VersionRow, shape: Shape) -> Underway[Snapshot]:
        key = (version.id, shape)
        if key not in self._underway:
            job: Underway[Snapshot] = Underway(f"the snapshot of {version.reference} for {said(shape)}")
            self._underway[key] = job
            self._tasks.start_soon(self._obtain, version, shape, job)
        return self._underway[key]

    async def _obtain(self, version: VersionRow, shape: Shape, job: Underway[Snapshot]) -> None:
        key = (version.id, shape)

        async def work(progress: Progress) -> Snapshot:
            async with self._turn(key):
                found = await self._find(version, shape)
                if found is None:
                    if why := await self._why_again(version, shape):
                        self.rebuilds[key] = Rebuild(version, shape, why, job)
                        log.info("rebuilding a snapshot", image=version.reference, shape=said(shape), why=why)
                        progress("rebuild", f"its snapshot fits no more: {why}", 0.0)
                        await self.on_rebuild()
                    found = await self._build(version, shape, progress)
                self._known[key] = found
                return found[0]

        limit_s = QUEUE_LIMIT_S + 2 * (self._host.boot_timeout_s + PREPARE_S + DIGEST_LIMIT_S)
        try:
            await job.run(work, limit_s=limit_s)
        finally:
            del self._underway[key]
        if job.failure is None and key in self.rebuilds:
            del self.rebuilds[key]
            log.info("a snapshot was rebuilt", image=version.reference, shape=said(shape))
        await self.on_rebuild()
        if shape != self._host.default_shape:
            await self.prune_over_budget()

    async def _find_or_refuse(self, version: VersionRow, shape: Shape) -> None:
        async with self._turn((version.id, shape)):
            found = await self._find(version, shape)
            if found is None:
                raise errors.SnapshotMissing(
                    f"image {version.reference} has no snapshot for {said(shape)}",
                    hint="let it be built (without --no-build, build=False), or ask for the default shape",
                )
            self._known[version.id, shape] = found

    async def own_shape(self, version: VersionRow) -> Shape:
        """Of a session. Raises StateConflict, ImageBroken."""
        return shape_of(own_row(version, await self._host.database.read(rows.snapshots_of, version.id)))

    async def _find_session(self, version: VersionRow, shape: Shape) -> None:
        """Known from here on, or refused: nobody can build it again."""
        async with self._turn((version.id, shape)):
            row = own_row(version, await self._host.database.read(rows.snapshots_of, version.id))
            check_own_shape(version, shape_of(row), shape)
            snapshot, _ = await self.judged(version, row)
            check_fit(snapshot.made, await self._host.here(snapshot.made), "session-snapshot", version.reference)
            identity = await anyio.to_thread.run_sync(self._whole, snapshot)
            if identity is None:
                raise errors.ImageBroken(
                    f"the snapshot of {version.reference} is not whole: a file of it is gone or was changed",
                    hint="find out who can write in the home; what is left of it is of no use",
                )
            self._known[version.id, shape] = snapshot, identity

    @asynccontextmanager
    async def _turn(self, key: Key) -> AsyncIterator[None]:
        async with self._turns.setdefault(key, anyio.Lock()):
            yield

    async def _stamp(self, snapshot: Snapshot) -> None:
        now = time.monotonic()
        if now - self._stamped.get(snapshot.id, -STAMP_EVERY_S) < STAMP_EVERY_S:
            return  # a thread costs more than this is worth to every create
        self._stamped[snapshot.id] = now
        await anyio.to_thread.run_sync(os.utime, snapshot.folder)

    # ------------------------------------------------------------------------ finding and building

    async def fits(self, version: VersionRow, row: SnapshotRow) -> Snapshot | None:
        """The snapshot of *row*, if this host, its artifacts and today's agent are what it was made with."""
        snapshot, misfits = await self.judged(version, row)
        return None if misfits or row.state != "ready" else snapshot

    async def judged(self, version: VersionRow, row: SnapshotRow) -> tuple[Snapshot, list[Misfit]]:
        """The snapshot of *row*, and why it does not fit. Raises ImageBroken, SealBroken."""
        read = partial(Snapshot.read, self._host.snapshots / row.id, self._host.seal, tenant=row.tenant)
        if version.contains_session_state:
            snapshot = await anyio.to_thread.run_sync(read)
            return snapshot, unfit(snapshot.made, await self._host.here(snapshot.made), "session-snapshot")
        parts = await anyio.to_thread.run_sync(self._host.artifacts, version)
        here = Here(await self._host.driver.platform(), (parts.root, parts.agent), kernel_release=parts.kernel_release)
        snapshot = await anyio.to_thread.run_sync(read)
        return snapshot, unfit(snapshot.made, here, "image-snapshot")

    async def _why_again(self, version: VersionRow, shape: Shape) -> str:
        """Why what is there of that shape is of no use; empty where nothing is."""
        for row in reversed(await self._host.database.read(rows.snapshots_of, version.id)):
            if (row.vcpus, row.memory_mib, row.disk_mib) == _numbers(shape):
                try:
                    _, misfits = await self.judged(version, row)
                except (errors.ImageBroken, errors.SealBroken) as error:
                    return error.message
                return sentences(misfits) or "its files are not those that were sealed"
        return ""

    async def find(self, version: VersionRow, shape: Shape) -> Snapshot | None:
        """As it is now, without building."""
        async with self._turn((version.id, shape)):
            found = await self._find(version, shape)
            return None if found is None else found[0]

    async def _find(self, version: VersionRow, shape: Shape) -> tuple[Snapshot, Identity] | None:
        for row in reversed(await self._host.database.read(rows.snapshots_of, version.id)):
            if (row.vcpus, row.memory_mib, row.disk_mib) != _numbers(shape):
                continue
            try:
                snapshot = await self.fits(version, row)
                if snapshot is None:
                    continue
                identity = await anyio.to_thread.run_sync(self._whole, snapshot)
                if identity is not None:
                    return snapshot, identity
            except (errors.ImageBroken, errors.SealBroken) as error:
                log.warning("a snapshot cannot be used and is built again", snapshot=row.id, error=error.message)
        return None

    async def _build(self, version: VersionRow, shape: Shape, progress: Progress) -> tuple[Snapshot, Identity]:
        if self._places.value == 0:
            progress("wait", "other snapshots are being built; waiting for them", None)
        async with self._places:
            parts = await anyio.to_thread.run_sync(self._host.artifacts, version)
            _check_space(self._host.snapshots, shape)
            place = Place(self._host.driver, self._host.snapshots, self._host.seal, self._host.boot_timeout_s)
            snapshot = await build_snapshot(place, Recipe(version.reference, shape, parts, version.tenant), progress)
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
            identity = await anyio.to_thread.run_sync(self._whole, snapshot)
            if identity is not None:
                await self._drop_superseded(version, shape, keep=snapshot.id)
        if identity is None:
            raise errors.ImageBroken(f"snapshot {snapshot.id} was changed while it was made", hint="try again")
        return snapshot, identity

    async def _drop_superseded(self, version: VersionRow, shape: Shape, keep: str) -> None:
        """What no longer fitted has a successor now; what a sandbox stands on stays for the next prune."""
        used = await self.users()
        for row in await self._host.database.read(rows.snapshots_of, version.id):
            same = (row.vcpus, row.memory_mib, row.disk_mib) == _numbers(shape)
            if same and row.id != keep and row.id not in used and not self._lent[row.id]:
                await self._delete(row.id)

    def _whole(self, snapshot: Snapshot) -> Identity | None:
        """What its files are known by, if they are those that were sealed: hashed once after each boot of the host."""
        identity = _identity(snapshot)
        if identity is None:
            return None
        for name, digest in snapshot.digests.items():
            with (snapshot.folder / name).open("rb") as file:
                if not self._host.verified.recognises(file.fileno(), digest):
                    if snapshot.digest_of(name, file.fileno()) != digest:
                        log.error("a snapshot's file was changed", snapshot=snapshot.id, file=name)
                        return None
                    self._host.verified.remember(file.fileno(), digest)
        return identity

    # -------------------------------------------------------------------------------- letting go

    async def users(self) -> dict[str, list[SandboxRow]]:
        """Which sandboxes, of all tenants, stand on which snapshot: by its id. Also the ready ones of pools."""
        found: dict[str, list[SandboxRow]] = {}
        for row in await self._host.database.read(sandboxes.live):
            found.setdefault(row.snapshot_id, []).append(row)
        return found

    async def stored(self, version: VersionRow) -> list[Stored]:
        """A version's snapshots with their sizes; one without a folder takes no room."""
        found = await self._host.database.read(rows.snapshots_of, version.id)
        return await anyio.to_thread.run_sync(lambda: [_measured(self._host.snapshots / row.id, row) for row in found])

    async def prune_over_budget(self) -> list[str]:
        """Drop the extra shapes that were used longest ago, until the rest is within the budget; their ids.

        Never the default shape, never one in use, never what a tenant has kept of a sandbox.
        """
        async with self._pruning:
            return await self._prune_over_budget()

    async def _prune_over_budget(self) -> list[str]:
        versions = await self._host.database.read(rows.all_versions)
        extra = [
            (version, stored)
            for version in versions
            for stored in await self.stored(version)
            if stored.shape != self._host.default_shape and not version.contains_session_state
        ]
        over = sum(stored.size_bytes for _, stored in extra) - self._host.shape_budget_mib * MIB
        dropped = []
        for version, stored in sorted(extra, key=lambda pair: pair[1].used_at):
            if over <= 0:
                break
            if await self.drop(version, stored):
                over -= stored.size_bytes
                dropped.append(stored.row.id)
        if dropped:
            log.info("dropped the least used snapshots of extra shapes", snapshots=dropped)
        return dropped

    async def drop(self, version: VersionRow, stored: Stored) -> bool:
        """Delete one snapshot, unless it is in use or just wanted; whether it is gone."""
        key = (version.id, stored.shape)
        if key in self._underway:
            return False
        async with self._turn(key):
            known = self._known.get(key)
            if known is not None and known[0].id == stored.row.id:
                del self._known[key]  # first, so that from here on nobody can borrow it
            if self._lent[stored.row.id] or stored.row.id in await self.users():
                if known is not None:
                    self._known[key] = known
                return False
            await self._delete(stored.row.id)
            self.rebuilds.pop(key, None)
            return True

    @contextmanager
    def retired(self, version: VersionRow) -> Iterator[None]:
        """For the block, nobody gets a snapshot of *version*. Raises StateConflict while one is being built."""
        if any(key[0] == version.id for key in self._underway):
            raise errors.StateConflict(
                f"a snapshot of image {version.reference} is being built", hint="try again later"
            )
        self._retired.add(version.id)
        try:
            yield
        finally:
            self._retired.discard(version.id)

    def forget(self, version: VersionRow) -> None:
        """Lend nothing of this version that has not been looked at anew."""
        for key in [key for key in self._known if key[0] == version.id]:
            del self._known[key]

    async def _delete(self, snapshot_id: str) -> None:
        self._stamped.pop(snapshot_id, None)
        dying = self._host.snapshots / f"{BUILDING}{snapshot_id}"  # whoever dies over it, the next start removes it
        with anyio.CancelScope(shield=True):
            with suppress(FileNotFoundError):
                await anyio.to_thread.run_sync((self._host.snapshots / snapshot_id).rename, dying)
            await self._host.database.write(rows.delete_snapshot, snapshot_id)
            await anyio.to_thread.run_sync(remove_folder, dying)


def _numbers(shape: Shape) -> tuple[int, int, int]:
    return shape.vcpus, shape.memory_mib, shape.disk_mib


def _identity(snapshot: Snapshot) -> Identity | None:
    """Another one after any write, exchange or change of mode; None where a file is gone."""
    try:
        stats = [os.stat(snapshot.folder / name) for name in (*sorted(snapshot.digests), "manifest.json")]
    except FileNotFoundError:
        return None
    return tuple((s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for s in stats)


def _measured(folder: Path, row: SnapshotRow) -> Stored:
    try:
        used_at = folder.stat().st_mtime
        size_bytes = sum(path.stat().st_blocks * 512 for path in folder.iterdir())
    except FileNotFoundError:
        return Stored(row, folder, 0, 0.0)
    return Stored(row, folder, size_bytes, used_at)


def _check_space(folder: Path, shape: Shape) -> None:
    """A guest's memory is a file; on a full disk the VMM would be killed by the signal SIGBUS."""
    free = os.statvfs(folder)
    free_mib = free.f_bavail * free.f_frsize // MIB
    needed_mib = min(shape.memory_mib, 768) + SPARE_MIB
    if free_mib < needed_mib:
        raise errors.HostFull(
            f"{free_mib} MiB are free for snapshots; building one of {shape.memory_mib} MiB takes about {needed_mib}",
            hint="casemate image prune, or more disk space",
        )
