"""What was kept of a sandbox, streamed out to another host, and in from one. ``session_bundle`` has the format."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio

from casemate import errors
from casemate.audit import EventKind
from casemate.build import session_bundle as bundles
from casemate.build.host import BuildHost
from casemate.build.own_shape import own_row
from casemate.build.removal import Removal
from casemate.build.session_bundle import Arrived, Inbox, Manifest
from casemate.build.sessions import Sessions, check_new_name, check_new_tag
from casemate.build.shapes import Shapes
from casemate.build.snapshot import BUILDING, FOLDER_MODE, write_manifest
from casemate.build.transfer import IMPORTS_AT_ONCE, fed, in_thread
from casemate.host import own_folder
from casemate.images.bundle import enter
from casemate.images.store import DIGEST
from casemate.sandbox import Here, Made, Snapshot, check_fit, new_id, refusals_named
from casemate.storage import VersionRow
from casemate.storage import images as rows


class SessionTransfer:
    """Every method may be called from any task."""

    def __init__(self, host: BuildHost, shapes: Shapes, removal: Removal, sessions: Sessions) -> None:
        self._host = host
        self._shapes = shapes
        self._removal = removal
        self._sessions = sessions
        self._places = anyio.Semaphore(IMPORTS_AT_ONCE)

    # ----------------------------------------------------------------------------------- export

    @asynccontextmanager
    async def export(
        self, tenant: str, ref: str, *, base: bool = True, actor: str
    ) -> AsyncIterator[tuple[int, AsyncIterator[bytes]]]:
        """The bytes of a bundle and how many they are; without *base* no kernel and no disks but its own.

        What fits no more here is exported too. Raises NotFound, StateConflict, ImageBroken, SealBroken.
        """
        version = await self._sessions.version(tenant, ref)
        row = own_row(version, await self._host.database.read(rows.snapshots_of, version.id))
        snapshot = await self._shapes.stored_one(row.id, (version.tenant,))  # whole, and sealed by us
        with ExitStack() as held:
            with refusals_named(f"the files of {version.reference}"):
                manifest, pieces = await anyio.to_thread.run_sync(self._open, version, snapshot, base, held)
            await self._host.trail.record(
                EventKind.SNAPSHOT_EXPORTED, tenant=version.tenant, actor=actor, subject=version.reference
            )
            yield bundles.length(manifest), in_thread(pieces)

    def _open(self, version: VersionRow, snapshot: Snapshot, base: bool, held: ExitStack) -> Any:
        """All that is open can be read to its end, whatever is removed meanwhile."""
        store = self._host.workshop.store
        files = {name: held.enter_context((snapshot.folder / name).open("rb")) for name in bundles.FILES}
        bitmaps = {name: bundles.bitmap_of(files[name].fileno()) for name in bundles.SPARSE}
        artifacts, sizes = {}, {}
        for part in bundles.PARTS:
            digest = version.artifacts.get(part, "")
            file = held.enter_context(os.fdopen(store.open(digest), "rb"))
            sizes[part] = (digest, os.fstat(file.fileno()).st_size)
            if base:
                artifacts[part] = file
        manifest = Manifest(
            name=version.name,
            tag=version.tag,
            parent=version.parent,
            config={key: str(value) for key, value in version.config.items()},
            shape=snapshot.shape,
            platform=snapshot.platform,
            kernel_release=snapshot.kernel_release,
            generation=snapshot.generation,
            digests=dict(snapshot.digests),
            chunks={name: bundles.count(bitmap) for name, bitmap in bitmaps.items()},
            state_bytes=os.fstat(files["state"].fileno()).st_size,
            artifacts=sizes,
            carries=base,
        )
        return manifest, bundles.written(manifest, files, bitmaps, artifacts)

    # ----------------------------------------------------------------------------------- import

    async def receive(
        self, tenant: str, name: str | None, sha256: str, pieces: AsyncIterator[bytes], *, actor: str
    ) -> dict[str, Any]:
        """A bundle with that *sha256* becomes the next, active version of its name, or of *name*.

        For the host's owner. It is sealed anew, as this host's. Cancelled or failed: nothing of it stays.
        Raises InvalidSpec, Unfit where it cannot run here, HostFull.
        """
        if not DIGEST.fullmatch(sha256):
            raise errors.InvalidSpec("a snapshot is imported by its sha256", hint="as its export has printed it")
        if name is not None:
            check_new_name(name)
        snapshot_id, here = new_id(), await self._here()
        with refusals_named("the import of a snapshot"):
            version = await self._taken_in(tenant, name, sha256, pieces, snapshot_id, here)
        await self._host.trail.record(
            EventKind.SNAPSHOT_IMPORTED,
            tenant=tenant,
            actor=actor,
            subject=version.reference,
            detail={"sha256": sha256, "parent": version.parent},
        )
        return await self._sessions.describe(version)

    async def _taken_in(
        self, tenant: str, name: str | None, sha256: str, pieces: AsyncIterator[bytes], snapshot_id: str, here: Here
    ) -> VersionRow:
        async with self._places, own_folder(self._host.snapshots / f"{BUILDING}{snapshot_id}", FOLDER_MODE) as folder:
            inbox = Inbox(folder, self._host.workshop.store, sha256, partial(self._check, name=name, here=here))
            async with fed(pieces, partial(bundles.read, inbox=inbox), Arrived.abandon) as arrived:
                read = partial(self._snapshot, arrived.manifest, tenant, snapshot_id)
                await anyio.to_thread.run_sync(_check_digests, read(folder, name="unnamed@1"))
                with anyio.CancelScope(shield=True):  # all of it or nothing
                    return await self._enter(arrived, tenant, name or arrived.manifest.name, folder, read)
        raise AssertionError("unreachable")

    async def _here(self) -> Here:
        nothing = Path("/nonexistent")
        found = await self._host.here(Made(await self._host.driver.platform(), "", 1, nothing, nothing))
        return Here(found.platform, (), found.kept_vmms)

    def _check(self, manifest: Manifest, *, name: str | None, here: Here) -> None:
        """Blocks. Raises InvalidSpec, Unfit."""
        check_new_name(name or manifest.name)
        if manifest.tag is not None:
            check_new_tag(manifest.tag)
        store = self._host.workshop.store
        lacking = [part for part, (digest, _) in manifest.artifacts.items() if not store.has(digest)]
        if lacking and not manifest.carries:
            raise errors.Unfit(
                f"{manifest.name} was exported without its {', '.join(lacking)}, and here is none like it",
                hint="export it with them (without --no-base), or build the image it stands on",
            )
        made = _made(manifest, store.root)
        check_fit(made, Here(here.platform, (made.root, made.agent), here.kept_vmms), "session-snapshot", manifest.name)

    def _snapshot(self, manifest: Manifest, tenant: str, snapshot_id: str, folder: Path, *, name: str) -> Snapshot:
        made = _made(manifest, self._host.workshop.store.root)
        return Snapshot(
            id=snapshot_id,
            image=name,
            shape=manifest.shape,
            platform=made.platform,
            kernel_release=made.kernel_release,
            folder=folder,
            root=made.root,
            agent=made.agent,
            digests=manifest.digests,
            tenant=tenant,
            generation=made.generation,
            kind="user",
        )

    async def _enter(self, arrived: Arrived, tenant: str, name: str, folder: Path, read: Any) -> VersionRow:
        manifest, store = arrived.manifest, self._host.workshop.store
        artifacts = {part: digest for part, (digest, _) in manifest.artifacts.items()}
        async with self._removal.turn:
            await anyio.to_thread.run_sync(enter, store, arrived.pending, manifest.artifacts)
            begin = partial(
                self._sessions.begin,
                tenant=tenant,
                name=name,
                config=manifest.config,
                artifacts=artifacts,
                parent=manifest.parent,
                snapshot_id=(snapshot_id := folder.name.removeprefix(BUILDING)),
                shape=manifest.shape,
            )
            version = await self._host.database.write(begin)
        try:
            final = self._host.snapshots / snapshot_id
            snapshot = read(final, name=version.reference)
            await anyio.to_thread.run_sync(_finish, folder, snapshot, self._host)
            return await self._sessions.complete(version, snapshot, manifest.tag)
        except BaseException as error:
            await self._sessions.give_up(version, snapshot_id, error)
            raise


def _made(manifest: Manifest, artifacts: Path) -> Made:
    root, agent = (artifacts / manifest.artifacts[part][0] for part in ("root", "agent"))
    return Made(manifest.platform, manifest.kernel_release, manifest.generation, root, agent)


def _check_digests(snapshot: Snapshot) -> None:
    """Blocks. Raises InvalidSpec."""
    for name, digest in snapshot.digests.items():
        with (snapshot.folder / name).open("rb") as file:
            if snapshot.digest_of(name, file.fileno()) != digest:
                raise bundles.odd(f"the digest of its {name} is wrong; the file was changed or damaged")


def _finish(folder: Path, snapshot: Snapshot, host: BuildHost) -> None:
    """Sealed, unchangeable, durable, and by one rename there. Blocks."""
    for name in bundles.FILES:
        (folder / name).chmod(0o444)
    write_manifest(folder, snapshot, host.seal)
    folder.rename(snapshot.folder)
    snapshot.sync()
