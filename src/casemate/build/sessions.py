"""Snapshots that tenants take of their sandboxes: kept as versions of images, shown, and let go.

    keep ── a version, building ── Sandboxes.take: snapshots/<id>/ ── ready, active, tagged
                     └── failed or cancelled: the version says so, and nothing else of it stays

A session is its tenant's alone: to everybody else there is none of that name. It is never built again, so nothing
deletes it but its tenant, or the host's owner by ``rm`` and ``prune``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any, Literal, Protocol

import anyio
import anyio.lowlevel
import sqlalchemy as sa
import structlog

from casemate import errors
from casemate.audit import EventKind
from casemate.build.host import BUILT_IN_NAMES, BuildHost
from casemate.build.own_shape import own_row
from casemate.build.references import LATEST, Reference, check_name, check_tag
from casemate.build.removal import Item, Removal, to_json
from casemate.build.shapes import Shapes, Stored
from casemate.build.users import Users, first_meant, meant, owners_of
from casemate.host import remove_folder
from casemate.sandbox import Handle, Shape, Snapshot, State, new_id
from casemate.storage import SnapshotRow, VersionRow
from casemate.storage import images as rows

log = structlog.get_logger()
GIVE_UP_S = 30.0
SHARED_PARTS = ("root", "agent")


class Takes(Protocol):
    """Copies living sandboxes: ``sandbox.Sandboxes``."""

    def get(self, tenant: str, ref: str) -> Handle: ...

    async def take(
        self,
        tenant: str,
        ref: str,
        *,
        image: str,
        kind: Literal["user", "fork"],
        snapshot_id: str | None = None,
        durable: bool,
        actor: str,
    ) -> Snapshot: ...


class Sessions:
    """Every method may be called from any task."""

    def __init__(self, host: BuildHost, shapes: Shapes, removal: Removal) -> None:
        self._host = host
        self._shapes = shapes
        self._removal = removal

    # -------------------------------------------------------------------------------------- making

    async def keep(
        self, tenant: str, ref: str, name: str, tag: str | None, *, sandboxes: Takes, actor: str
    ) -> dict[str, Any]:
        """Sandbox *ref* as it is at this moment becomes the next, active version of *name*, and the one with *tag*.

        Cancelled or failed before it does: the version is there as a failed one, and nothing else of it. Cancelled
        after that, while it is described: it is kept. Raises InvalidSpec, and what ``take`` raises.
        """
        check_new_name(name)
        if tag is not None:
            check_new_tag(tag)
        handle = sandboxes.get(tenant, ref)
        snapshot_id = new_id()
        with anyio.CancelScope(shield=True):
            async with self._removal.turn:  # the parent's artifacts are named before anybody may find them unneeded
                begin = partial(self._begin, handle=handle, name=name, snapshot_id=snapshot_id)
                version = await self._host.database.write(begin)
        try:
            await anyio.lowlevel.checkpoint_if_cancelled()
            taken = await sandboxes.take(
                tenant,
                handle.info.id,
                image=version.reference,
                kind="user",
                snapshot_id=snapshot_id,
                durable=True,
                actor=actor,
            )
            await anyio.lowlevel.checkpoint_if_cancelled()
            with anyio.CancelScope(shield=True):
                version = await self.complete(version, taken, tag)
        except BaseException as error:
            with anyio.CancelScope(shield=True), anyio.move_on_after(GIVE_UP_S):
                await self.give_up(version, snapshot_id, error)
            raise
        timings = {} if taken.taken is None else asdict(taken.taken)
        return await self.describe(version) | {key: timings.get(key) for key in ("pause_ms", "frozen_ms", "took_ms")}

    def _begin(self, connection: sa.Connection, *, handle: Handle, name: str, snapshot_id: str) -> VersionRow:
        info = handle.info
        parent = rows.version_of(connection, info.snapshot)
        if parent is None:  # the snapshot of a fork has no row
            owners = owners_of(info.tenant, info.image_tenant)
            parent = first_meant(rows.all_versions(connection), owners, info.image)
        return self.begin(
            connection,
            tenant=info.tenant,
            name=name,
            config={key: value for key, value in parent.config.items() if key != "built_in"} if parent else {},
            artifacts=parent.artifacts if parent else {},
            parent=info.image,
            snapshot_id=snapshot_id,
            shape=Shape(info.vcpus, info.memory_mib, info.disk_mib),
        )

    def begin(
        self,
        connection: sa.Connection,
        *,
        tenant: str,
        name: str,
        config: Mapping[str, Any],
        artifacts: Mapping[str, str],
        parent: str | None,
        snapshot_id: str,
        shape: Shape,
    ) -> VersionRow:
        """A version that is being made; ``complete`` or ``give_up`` follow. An act of the database's."""
        add = partial(rows.add_version, connection, tenant, self._host.host_id, name, config)
        version = add(kind="session", parent=parent)
        rows.update_version(connection, version.id, state="building", artifacts=artifacts)
        row = SnapshotRow(
            id=snapshot_id,
            tenant=tenant,
            host_id=self._host.host_id,
            version_id=version.id,
            **asdict(shape),
            platform={},
            state="building",
            memory_bytes=0,
        )
        rows.put_snapshot(connection, row)
        return rows.version(connection, tenant, name, version.number)

    async def complete(self, version: VersionRow, snapshot: Snapshot, tag: str | None) -> VersionRow:
        """The version whose *snapshot* is whole is what its name means from here on, unless a newer one was faster."""
        measured = await anyio.to_thread.run_sync(self._entered, snapshot)
        artifacts = {
            **version.artifacts,
            "root": snapshot.root.name,
            "agent": snapshot.agent.name,
            "kernel_release": snapshot.kernel_release,
        }
        memory_bytes = snapshot.files.memory.stat().st_blocks * 512

        def act(connection: sa.Connection) -> VersionRow:
            (row,) = rows.snapshots_of(connection, version.id)
            rows.delete_snapshot(connection, row.id)  # its platform is known now, and is never changed
            rows.put_snapshot(connection, _whole(row, snapshot, memory_bytes))
            rows.update_version(connection, version.id, state="ready", artifacts=artifacts, size_bytes=measured)
            named = rows.versions(connection, version.tenant)
            newer = [one for one in named if one.image_id == version.image_id and one.number > version.number]
            if not any(one.active for one in newer):
                rows.activate(connection, version.id)
            if tag is not None and all(one.tag != tag for one in newer):
                rows.claim_tag(connection, version.id, tag)
            return rows.version(connection, version.tenant, version.name, version.number)

        return await self._host.database.write(act)

    def _entered(self, snapshot: Snapshot) -> int:
        """How many bytes it takes. Its files were hashed to be sealed: no create need do it again. Blocks."""
        for name, digest in snapshot.digests.items():
            with (snapshot.folder / name).open("rb") as file:
                self._host.verified.remember(file.fileno(), digest)
        return sum(path.stat().st_blocks * 512 for path in snapshot.folder.iterdir())

    async def give_up(self, version: VersionRow, snapshot_id: str, error: BaseException) -> None:
        """Of what was begun nothing stays, but that the version says why."""
        why = str(error) if isinstance(error, errors.CasemateError) else f"given up: {type(error).__name__}"
        log.warning("a snapshot was not kept", image=version.reference, why=why)
        try:
            await anyio.to_thread.run_sync(remove_folder, self._host.snapshots / snapshot_id)
        except OSError as refused:  # the pruning of images finds it
            log.error("what was begun of a snapshot could not be removed", snapshot=snapshot_id, error=str(refused))

        def act(connection: sa.Connection) -> None:
            rows.delete_snapshot(connection, snapshot_id)
            rows.update_version(connection, version.id, state="failed", log=why)

        await self._host.database.write(act)

    # ------------------------------------------------------------------------------------- showing

    async def listed(self, tenant: str) -> list[dict[str, Any]]:
        """A tenant's own, by name and version."""
        found = [version for version in await self._own(tenant) if version.contains_session_state]
        users = await self._host.database.read(Users.read)
        shown = [await self.describe(version, users) for version in found]
        return sorted(shown, key=lambda body: (body["name"], body["version"]))

    async def get(self, tenant: str, ref: str) -> dict[str, Any]:
        """One whole: what it was made with, and why it cannot be used here, if so. Raises NotFound, InvalidSpec."""
        version = await self.version(tenant, ref)
        body = await self.describe(version) | {"misfits": [], "broken": None}
        if version.state != "ready":
            return body
        try:
            row = own_row(version, await self._host.database.read(rows.snapshots_of, version.id))
            snapshot, misfits = await self._shapes.judged(version, row)
        except (errors.ImageBroken, errors.SealBroken) as error:
            return body | {"broken": error.message}
        return body | {
            "misfits": [misfit.sentence for misfit in misfits],
            "platform": asdict(snapshot.platform),
            "kernel_release": snapshot.kernel_release,
            "generation": snapshot.generation,
            "digests": dict(snapshot.digests),
            "parent_sandbox": snapshot.parent_sandbox,
            "taken": asdict(snapshot.taken) if snapshot.taken else None,
        }

    async def version(self, tenant: str, ref: str, *, anybodys: bool = False) -> VersionRow:
        """By name, name@version, name:tag or the snapshot's id; *anybodys*: by its id also somebody else's.

        Raises NotFound, InvalidSpec.
        """
        reference = Reference.parse(ref)
        own = [version for version in await self._own(tenant) if version.contains_session_state]
        if found := meant(own, reference):
            return found
        for version in await self._host.database.read(rows.all_versions) if anybodys else own:
            if version.contains_session_state and ref in {
                row.id for row in await self._host.database.read(rows.snapshots_of, version.id)
            }:
                return version
        raise errors.NotFound(f"there is no snapshot {ref[:100]!r}", hint="casemate snapshots ls")

    async def describe(self, version: VersionRow, users: Users | None = None) -> dict[str, Any]:
        if users is None:
            users = await self._host.database.read(Users.read)
        stored = next(iter(await self._shapes.stored(version)), None)
        return {
            "name": version.name,
            "version": version.number,
            "tag": version.tag,
            "state": version.state,
            "why": version.log if version.state == "failed" else None,
            "active": version.active,
            "parent": version.parent,
            "contains_session_state": version.contains_session_state,
            "created_at": version.created_at,
            **_measures(stored),
            "shared_bytes": await anyio.to_thread.run_sync(self._shared_bytes, version),
            "artifacts": {part: version.artifacts[part] for part in SHARED_PARTS if part in version.artifacts},
            "users": _users(version, users),
        }

    def _shared_bytes(self, version: VersionRow) -> int:
        store = self._host.workshop.store
        digests = [version.artifacts.get(part, "") for part in SHARED_PARTS]
        return sum(store.path(digest).stat().st_blocks * 512 for digest in digests if store.has(digest))

    async def _own(self, tenant: str) -> Sequence[VersionRow]:
        return await self._host.database.read(rows.versions, tenant)

    # ---------------------------------------------------------------------------------- letting go

    async def remove(self, tenant: str, ref: str, *, anybodys: bool = False, actor: str) -> dict[str, Any]:
        """Delete it; with *anybodys*, for the host's owner, also another tenant's, by its id.

        Raises StateConflict, naming them, while sandboxes or pools stand on it.
        """
        version = await self.version(tenant, ref, anybodys=anybodys)
        gone = await self._removal.remove(version, force=True)
        await self.record_removed(version, gone, actor)
        return to_json(gone, dry_run=False)

    async def prune(
        self, tenant: str, *, everybodys: bool = False, dry_run: bool = False, actor: str
    ) -> dict[str, Any]:
        """Delete what failed, and what neither its name nor a tag means and nobody stands on; older ones first.

        *everybodys*: of all tenants, for the host's owner. With *dry_run* what would go.
        """
        done = await self._removal.prune_sessions(None if everybodys else tenant, dry_run=dry_run)
        for version, items in done:
            if not dry_run:
                await self.record_removed(version, items, actor)
        return to_json([item for _, items in done for item in items], dry_run=dry_run)

    async def record_removed(self, version: VersionRow, items: Sequence[Item], actor: str) -> None:
        detail = {"parent": version.parent, "size_bytes": sum(item.size_bytes for item in items)}
        await self._host.trail.record(
            EventKind.SNAPSHOT_REMOVED, tenant=version.tenant, actor=actor, subject=version.reference, detail=detail
        )


def check_new_name(name: str) -> None:
    """Raises InvalidSpec also for a name of ours: whoever asks for that image has to get it."""
    check_name(name)
    if name in BUILT_IN_NAMES:
        raise errors.InvalidSpec(f"{name!r} is an image that Casemate comes with", hint="give it another name")


def check_new_tag(tag: str) -> None:
    """Raises InvalidSpec."""
    check_tag(tag)
    if tag == LATEST:
        raise errors.InvalidSpec(f"the tag {LATEST!r} always means the active version", hint="choose another one")


def _whole(row: SnapshotRow, snapshot: Snapshot, memory_bytes: int) -> SnapshotRow:
    return SnapshotRow(
        id=snapshot.id,
        tenant=row.tenant,
        host_id=row.host_id,
        version_id=row.version_id,
        **asdict(snapshot.shape),
        platform=asdict(snapshot.platform),
        state="ready",
        memory_bytes=memory_bytes,
        created_at=row.created_at,
    )


def _measures(stored: Stored | None) -> dict[str, Any]:
    if stored is None:
        keys = ("snapshot", "vcpus", "memory_mib", "disk_mib", "last_used_at")
        return dict.fromkeys(keys) | {"own_bytes": 0, "size_bytes": 0}
    return {
        "snapshot": stored.row.id,
        **asdict(stored.shape),
        "last_used_at": stored.used_at or None,
        "own_bytes": stored.size_bytes,
        "size_bytes": stored.size_bytes,
    }


def _users(version: VersionRow, users: Users) -> list[dict[str, Any]]:
    """Ready members are their pool's business."""
    boxes = [row for row in users.of(version) if row.state != State.READY]
    found = [{"kind": "sandbox", "id": row.id, "name": row.name, "state": row.state} for row in boxes]
    pools = [{"kind": "pool", "id": row.id, "name": None, "state": None} for row in users.pools_of(version)]
    return [*found, *pools]
