"""From a running sandbox to a snapshot: ``snapshots/<id>/``, made under a temporary name and renamed whole.

Its supervisor writes memory, state and disk (``taking``); digests, seal and manifest are its requester's, when it runs
again. What a user keeps is durable when it gets its name; what a fork stands on becomes so when a copy is suspended.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import anyio

from casemate.audit import EventKind, Trail
from casemate.host import own_folder, remove_folder, sync_file, sync_folder
from casemate.images import digest_of
from casemate.sandbox.admission import Amount
from casemate.sandbox.digests import Bases, digest_of_memory
from casemate.sandbox.handle import Handle
from casemate.sandbox.plan import refusals_named
from casemate.sandbox.seal import Seal
from casemate.sandbox.snapshot import FILES, SPARSE, Snapshot, SnapshotKind, Surroundings, Taken
from casemate.sandbox.suspended import Place

BUILDING = ".building-"  # what a daemon finds of that name at its start was left half made
FOLDER_MODE = 0o710  # a VMM's uid passes through by its group to the files bound into its jail


@dataclass(frozen=True, slots=True)
class Copy:
    """What is to be made of a living sandbox."""

    id: str
    image: str  # name@version
    kind: SnapshotKind
    durable: bool
    actor: str


@dataclass(frozen=True, slots=True)
class Copier:
    """How the sandboxes of one daemon are copied."""

    snapshots: Path
    seal: Seal
    trail: Trail
    bases: Bases = field(default_factory=Bases)

    async def copy(self, handle: Handle, wanted: Copy, detail: Mapping[str, object]) -> Snapshot:
        """The snapshot of *handle*'s state as it is now; *detail* goes on record before. See Handle.take.

        Cancelled or failed: nothing of it stays, and the sandbox runs on.
        """
        kind = EventKind.SANDBOX_FORK if wanted.kind == "fork" else EventKind.SANDBOX_SNAPSHOT
        info = handle.info
        detail = {"snapshot": wanted.id, **detail}
        await self.trail.record(kind, tenant=info.tenant, subject=info.id, actor=wanted.actor, detail=detail)
        with refusals_named(f"the snapshot of sandbox {info.id}"):
            async with own_folder(self.snapshots / f"{BUILDING}{wanted.id}", FOLDER_MODE) as folder:
                taken = await handle.take(folder, wanted.actor)
                try:
                    return await anyio.to_thread.run_sync(partial(self._keep, taken, handle, wanted))
                except BaseException:  # it may have its name already
                    with anyio.CancelScope(shield=True):
                        await anyio.to_thread.run_sync(remove_folder, self.snapshots / wanted.id)
                    raise

    def _keep(self, taken: Taken, handle: Handle, wanted: Copy) -> Snapshot:
        base = taken.made_of
        snapshot = Snapshot(
            id=wanted.id,
            image=wanted.image,
            shape=base.shape,
            platform=base.platform,
            kernel_release=base.kernel_release,
            folder=self.snapshots / wanted.id,
            root=base.root,
            agent=base.agent,
            digests=self._settled(taken, durable=wanted.durable),
            tenant=handle.info.tenant,
            generation=base.generation,
            kind=wanted.kind,
            parent_sandbox=handle.info.id,
            taken=taken.facts,
            image_tenant=base.image_owner if wanted.kind == "fork" else None,
            surroundings=Surroundings.of(handle.spec) if wanted.kind == "user" else None,
        )
        manifest = taken.folder / "manifest.json"
        with manifest.open("x") as file:
            json.dump(snapshot.manifest(self.seal), file, indent=1, sort_keys=True)
        manifest.chmod(0o444)
        if wanted.durable:
            sync_file(manifest)
            sync_folder(taken.folder)
        taken.folder.rename(snapshot.folder)
        if wanted.durable:
            sync_folder(self.snapshots)
        return snapshot

    def _settled(self, taken: Taken, *, durable: bool) -> dict[str, str]:
        """What copies map is changed no more, and known by its digests; those are taken while the disk writes."""
        paths = [taken.folder / name for name in sorted(FILES)]
        with ThreadPoolExecutor(len(paths)) as beside:
            writing = []
            for path in paths:
                path.chmod(0o444)
                if durable:
                    writing.append(beside.submit(sync_file, path))
            digests = {path.name: self._digest(path, taken.base) for path in paths}
            for written in writing:
                written.result()
        return digests

    def _digest(self, path: Path, base: Path | None) -> str:
        if path.name not in SPARSE:
            return digest_of(path)
        if path.name != "memory" or base is None:
            return digest_of_memory(path)
        with self.bases.open(base) as known:
            return digest_of_memory(path, known)


def amount_of(handle: Handle, place: Place) -> Amount:
    """What its flattened snapshot may come to take: all its memory, and of its disk what it has written. Blocks."""
    return Amount(0, handle.info.memory_mib + max(map(_used_mib, (place.disk, place.kept / "disk"))))


def stored_amount(folder: Path) -> Amount:
    """What a snapshot takes. Blocks."""
    return Amount(0, sum(_used_mib(path) for path in folder.iterdir()))


def _used_mib(path: Path) -> int:
    try:
        return -(-os.stat(path).st_blocks * 512 >> 20)
    except FileNotFoundError:  # it has the other name: that of a running one, or that of a suspended one
        return 0
