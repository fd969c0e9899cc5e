"""Images by name: what a list shows, what a create gets, building, and letting go."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import anyio

from casemate import errors
from casemate.build.host import BUILT_IN, BUILT_IN_NAMES, OWNER, BuildHost
from casemate.build.own_shape import check_own_shape
from casemate.build.references import Reference
from casemate.build.removal import Removal, to_json
from casemate.build.session_transfer import SessionTransfer
from casemate.build.sessions import Sessions, Takes
from casemate.build.shapes import Shapes
from casemate.build.snapshot import BUILDING, Progress
from casemate.build.transfer import Transfer
from casemate.build.upkeep import Upkeep
from casemate.build.users import meant
from casemate.build.verify import verified
from casemate.host import remove_folder
from casemate.sandbox import Shape, ShapeWish, Snapshot
from casemate.storage import VersionRow
from casemate.storage import images as rows

PARTS = ("kernel", "initrd", "root", "agent")


class Images:
    """Made by ``open_images``; every method may be called from any of the daemon's tasks."""

    def __init__(self, host: BuildHost, shapes: Shapes) -> None:
        self._host = host
        self.shapes = shapes
        self.removal = Removal(host, shapes)
        self.transfer = Transfer(host, self.removal)
        self.sessions = Sessions(host, shapes, self.removal)
        self.carriage = SessionTransfer(host, shapes, self.removal, self.sessions)
        self.upkeep = Upkeep(host, shapes, host.upkeep_report)
        self._building: dict[str, anyio.Lock] = {}

    # ------------------------------------------------------------------ what a create asks for

    @asynccontextmanager
    async def snapshot_for(
        self, tenant: str, ref: str, shape: Shape | ShapeWish, *, build: bool = True, progress: Progress | None = None
    ) -> AsyncIterator[Snapshot]:
        """The snapshot of image *ref* in that shape for this host, built when there is none; kept for the block.

        Raises NotFound for the image; SnapshotMissing without *build*; what building and ``shape_for`` raise.
        """
        version = await self.version(tenant, ref)
        if isinstance(shape, ShapeWish):
            shape = await self._shape_of(version, shape)
        async with self.shapes.lend(version, shape, build=build, progress=progress) as snapshot:
            yield snapshot

    async def shape_for(
        self, tenant: str, ref: str, vcpus: int | None, memory_mib: int | None, disk_mib: int | None
    ) -> Shape:
        """The shape that a create of *ref* gets where it asks for this: what it does not ask for is as the settings
        say, and of what was made of a sandbox as that was.

        Raises NotFound, InvalidSpec for another shape than a session's own, StateConflict, ImageBroken.
        """
        return await self._shape_of(await self.version(tenant, ref), ShapeWish(vcpus, memory_mib, disk_mib))

    async def keep(
        self, tenant: str, ref: str, name: str, tag: str | None, *, sandboxes: Takes, actor: str
    ) -> dict[str, Any]:
        """See Sessions.keep."""
        return await self.sessions.keep(tenant, ref, name, tag, sandboxes=sandboxes, actor=actor)

    async def build(self, tenant: str, name: str, force: bool, progress: Progress) -> dict[str, Any]:
        """Make image *name* usable: its artifacts, and a snapshot of the default shape; nothing twice.

        *force* makes a new version even where the last one is good.
        Raises NotFound, HostError, VmmError, GuestError.
        """
        if name not in BUILT_IN_NAMES:
            raise errors.NotFound(
                f"there is no recipe for an image {name[:80]!r}", hint=f"known: {', '.join(BUILT_IN_NAMES)}"
            )
        async with self._building.setdefault(name, anyio.Lock()):
            version = None if force else await self._usable(name)
            if version is None:
                version = await self._new_version(name, force, _from_any_thread(progress))
        async with self.shapes.lend(version, self._host.default_shape, progress=progress):
            return await self.describe_whole(version)

    # --------------------------------------------------------------------- coming and going

    async def remove(self, tenant: str, ref: str, force: bool, *, actor: str = "host") -> dict[str, Any]:
        """Raises StateConflict while it is in use, or active without *force*; Forbidden for what is not yours."""
        version = await self.version(tenant, ref)
        _check_owner(tenant, version)
        gone = await self.removal.remove(version, force=force)
        if version.contains_session_state:
            await self.sessions.record_removed(version, gone, actor)
        return to_json(gone, dry_run=False)

    async def prune(self, tenant: str, dry_run: bool) -> dict[str, Any]:
        """For the host's owner only: it looks at every tenant's."""
        if tenant != OWNER:
            raise errors.Forbidden("only the host's owner may prune its images")
        return to_json(await self.removal.prune(dry_run=dry_run), dry_run=dry_run)

    async def verify(self, tenant: str, ref: str, progress: Progress) -> dict[str, Any]:
        """Hash every file of a version and its snapshots in full. What is broken is said, not raised."""
        version = await self.version(tenant, ref)
        report = await verified(self._host, version, await self.shapes.stored(version), progress)
        if not report["ok"]:
            self.shapes.forget(version)
        return report

    @asynccontextmanager
    async def export(self, tenant: str, ref: str) -> AsyncIterator[tuple[int, AsyncIterator[bytes]]]:
        """The bytes of a bundle and how many they are. Raises NotFound, InvalidSpec, StateConflict, ImageBroken."""
        version = await self.version(tenant, ref)
        if version.contains_session_state:
            raise errors.InvalidSpec(
                f"{version.reference} was made of a sandbox: its disk alone is not it",
                hint=f"casemate snapshots export {version.reference}",
            )
        async with self.transfer.export(version) as bundle:
            yield bundle

    async def receive(self, tenant: str, name: str | None, pieces: AsyncIterator[bytes]) -> dict[str, Any]:
        """A bundle as a new version of its image, or of *name*. Raises InvalidSpec, HostFull."""
        return await self.describe_whole(await self.transfer.receive(tenant, name, pieces))

    # ------------------------------------------------------------------------ what a list shows

    async def list(self, tenant: str) -> list[dict[str, Any]]:
        found = []
        for owner in {tenant, BUILT_IN}:
            for version in await self._host.database.read(rows.versions, owner):
                found.append(await self._describe(version))
        return sorted(found, key=lambda image: (image["name"], image["version"]))

    async def get(self, tenant: str, ref: str) -> dict[str, Any]:
        """One version whole: its artifacts, its platform, and how a clone of it is started."""
        return await self.describe_whole(await self.version(tenant, ref))

    async def version(self, tenant: str, ref: str) -> VersionRow:
        """What *ref* means to *tenant*: its own image of that name before ours. Raises InvalidSpec, NotFound."""
        reference = Reference.parse(ref)
        for owner in (tenant, BUILT_IN):
            found = await self._host.database.read(rows.versions, owner)
            if match := meant(found, reference):
                return match
        raise errors.NotFound(
            f"there is no image {ref[:100]!r}", hint="see `casemate image ls`; build one with `casemate setup`"
        )

    async def describe_whole(self, version: VersionRow) -> dict[str, Any]:
        body = await self._describe(version)
        body["config"], body["artifacts"] = dict(version.config), dict(version.artifacts)
        body["platform"] = asdict(await self._host.driver.platform())
        snapshot = await self._default_snapshot(version)
        if snapshot is not None:
            example = snapshot.machine("example", Path("/disk"))
            body["clone"] = dict(self._host.driver.describe(example, snapshot.files)) | {
                "snapshot": snapshot.id,
                "disk": str(snapshot.disk),
            }
        return body

    # -------------------------------------------------------------------------------- the steps

    async def _shape_of(self, version: VersionRow, wish: ShapeWish) -> Shape:
        if not version.contains_session_state:
            return wish.filled(self._host.default_shape)
        own = await self.shapes.own_shape(version)
        check_own_shape(version, own, wish.filled(own))
        return own

    async def _default_snapshot(self, version: VersionRow) -> Snapshot | None:
        try:
            own = version.contains_session_state
            shape = await self.shapes.own_shape(version) if own else self._host.default_shape
            return await self.shapes.find(version, shape)
        except (errors.NotFound, errors.StateConflict, errors.ImageBroken, KeyError):  # gone, or never came about
            return None

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
        ready = partial(rows.update_version, state="ready", artifacts=artifacts, size_bytes=size_bytes)
        async with self.removal.turn:
            if not all(map(self._host.workshop.store.has, parts.digests.values())):
                await database.write(
                    rows.update_version, version.id, state="failed", log="its disk was removed meanwhile"
                )
                raise errors.StateConflict(f"a disk of image {name} was removed while it was built", hint="try again")
            await database.write(ready, version.id)
            await database.write(rows.activate, version.id)
        return await database.read(rows.version, BUILT_IN, name, version.number)

    async def _describe(self, version: VersionRow) -> dict[str, Any]:
        keys = ("id", "vcpus", "memory_mib", "disk_mib", "state", "memory_bytes")
        shown = []
        for stored in await self.shapes.stored(version):
            body = {key: getattr(stored.row, key) for key in keys}
            shown.append(body | {"size_bytes": stored.size_bytes, "last_used_at": stored.used_at})
        return {
            "name": version.name,
            "version": version.number,
            "state": version.state,
            "active": version.active,
            "created_at": version.created_at,
            "size_bytes": version.size_bytes,
            "digest": version.artifacts.get("root"),
            "contains_session_state": version.contains_session_state,
            "parent": version.parent,
            "tag": version.tag,
            "snapshots": shown,
            "rebuilds": self.upkeep.of(version),
        }


async def forget_unfinished(host: BuildHost) -> list[str]:
    """Remove what an earlier daemon was in the middle of building; the folders' names."""
    unfinished = await host.database.read(
        rows.unfinished_snapshots
    )  # one may have its name, and no row says it is whole
    left = sorted([*host.snapshots.glob(f"{BUILDING}*"), *_there(host.snapshots / name for name in unfinished)])
    for folder in left:
        await anyio.to_thread.run_sync(remove_folder, folder)
    await host.database.write(rows.fail_unfinished, "the daemon that built it died")
    return [folder.name for folder in left]


def _there(folders: Iterable[Path]) -> list[Path]:
    return [folder for folder in folders if folder.is_dir()]


@asynccontextmanager
async def open_images(host: BuildHost) -> AsyncIterator[Images]:
    """What an earlier daemon was in the middle of is forgotten first; at the end what is being built is given up."""
    await forget_unfinished(host)
    async with anyio.create_task_group() as tasks:
        yield Images(host, Shapes(host, tasks))
        tasks.cancel_scope.cancel()


def _check_owner(tenant: str, version: VersionRow) -> None:
    """Raises Forbidden: everybody uses the images we come with, the host's owner alone removes them."""
    if tenant not in (version.tenant, OWNER):
        raise errors.Forbidden(f"image {version.reference} is not yours to remove")


def _post(loop: asyncio.AbstractEventLoop, call: Callable[..., None], *news: Any) -> None:
    loop.call_soon_threadsafe(call, *news)


def _from_any_thread(progress: Progress) -> Progress:
    """Gathering artifacts runs in a worker thread; its listener lives in the event loop."""
    loop = asyncio.get_running_loop()
    return lambda step, message, fraction: _post(loop, progress, step, message, fraction)
