"""What of images may go, and its going: versions, snapshots, artifacts, leftovers.

A plan is data: the same for a dry run and for the deed. What is in use is looked at again for each deed.
"""

from __future__ import annotations

from collections.abc import Iterable, Set
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import anyio

from casemate import errors
from casemate.build.host import BuildHost
from casemate.build.own_shape import said
from casemate.build.shapes import Shapes, Stored
from casemate.build.snapshot import BUILDING
from casemate.build.users import Users
from casemate.host import remove_folder
from casemate.sandbox import State, kind_said, needed_by
from casemate.storage import VersionRow
from casemate.storage import images as rows
from casemate.vmm.kept import installed_builds

Kind = Literal["version", "snapshot", "artifact", "vmm", "leftover"]
PARTS = ("kernel", "initrd", "root", "agent")
WHY_REMOVED = "its version was removed"


@dataclass(frozen=True, slots=True)
class Item:
    """Something that goes; *size_bytes* is what it takes on the disk by itself."""

    kind: Kind
    name: str
    why: str
    size_bytes: int


class Removal:
    def __init__(self, host: BuildHost, shapes: Shapes) -> None:
        self._host = host
        self._shapes = shapes
        self.turn = anyio.Lock()  # held by who makes artifacts and names them, and by who deletes what nothing names

    async def remove(self, version: VersionRow, *, force: bool) -> list[Item]:
        """Delete a version, its snapshots, and those of its artifacts that nothing else needs.

        Raises StateConflict while a sandbox stands on it, or, without *force*, when it is the active one.
        """
        async with self.turn:
            if version.active and not force:
                await self._check_unused(version)
                raise errors.StateConflict(
                    f"image {version.reference} is what {version.name!r} means",
                    hint=f"casemate image rm --force {version.reference}, or make another version first",
                )
            gone = await self._take_out(version, WHY_REMOVED)
            # Its root disk goes even if a build could use it again: room was asked for
            needed, root = await self._needed((), set()), {version.artifacts.get("root", "")}
            sweep = partial(self._sweep, needed, set(_digests(version)), root, False, WHY_REMOVED)
            return gone + await anyio.to_thread.run_sync(sweep)

    async def _take_out(self, version: VersionRow, why: str) -> list[Item]:
        """A version and its snapshots, but no artifacts. Raises StateConflict."""
        await self._check_unused(version)
        gone: list[Item] = []
        with self._shapes.retired(version):
            for stored in await self._stored(version):
                if not await self._shapes.drop(version, stored):
                    raise errors.StateConflict(f"image {version.reference} is just being used", hint="try again")
                gone.append(self._item(version, stored, why))
            await self._host.database.write(rows.delete_version, version.id)
        if version.active:
            await self._host.database.write(rows.activate_newest, version.image_id)
        return [*gone, Item("version", version.reference, why, 0)]

    async def prune_sessions(self, tenant: str | None, *, dry_run: bool) -> list[tuple[VersionRow, list[Item]]]:
        """Of *tenant*'s sessions, of all with None: those that failed, and those that no name, no tag and nobody needs.

        Older ones first; with *dry_run* what would go.
        """
        async with self.turn:
            users = await self._host.database.read(Users.read)
            gone = []
            for version in await self._host.database.read(rows.all_versions):
                why = _why_pruned(version)
                if why is None or tenant not in (None, version.tenant) or users.has(version):
                    continue
                if dry_run:
                    items = [self._item(version, stored, why) for stored in await self._stored(version)]
                    gone.append((version, [*items, Item("version", version.reference, why, 0)]))
                    continue
                with suppress(errors.StateConflict):  # somebody has just asked for it
                    gone.append((version, await self._take_out(version, why)))
            return gone

    async def prune(self, *, dry_run: bool) -> list[Item]:
        """Old versions, snapshots that fit no more, artifacts nothing needs, and what a crash has left.

        With *dry_run* what would go. What a sandbox stands on stays, and so does what was kept of one.
        """
        async with self.turn:
            versions = await self._host.database.read(rows.all_versions)
            used, users = (
                set(await self._shapes.users()) | self._shapes.lent,
                await self._host.database.read(Users.read),
            )
            gone, lost = list[Item](), set[int]()
            for version in versions:
                if not version.contains_session_state:
                    items = await self._prune_version(version, used, bool(users.of(version)), dry_run=dry_run)
                    gone += items
                    if any(item.kind == "version" for item in items):
                        lost.add(version.id)
            gone += await self._drop_leftovers(dry_run=dry_run)
            sweep = partial(self._sweep, await self._needed(gone, lost), None, set(), dry_run, "nothing needs it")
            gone += await anyio.to_thread.run_sync(sweep)
            return gone + await self._drop_vmm_builds(gone, dry_run=dry_run)

    async def _prune_version(
        self, version: VersionRow, used: set[str], is_needed: bool, *, dry_run: bool
    ) -> list[Item]:
        old = not version.active and version.state in ("ready", "failed")
        if not old:
            return await self._prune_snapshots(version, used, None, dry_run=dry_run)
        try:
            with self._shapes.retired(version):
                before = len(await self._stored(version))
                gone = await self._prune_snapshots(version, used, "its version is not active", dry_run=dry_run)
                if len(gone) < before or is_needed:
                    return gone
                if not dry_run:
                    await self._host.database.write(rows.delete_version, version.id)
        except errors.StateConflict:  # somebody has just asked for it by its number
            return []
        why = "not the active version" if version.state == "ready" else "it failed"
        return [*gone, Item("version", version.reference, why, 0)]

    async def _prune_snapshots(
        self, version: VersionRow, used: set[str], why: str | None, *, dry_run: bool
    ) -> list[Item]:
        """With a *why* all that are not in use, without only those that fit no more."""
        gone = []
        for one in await self._stored(version):
            if one.row.id in used or (why is None and await self._still_fits(version, one)):
                continue
            if dry_run or await self._shapes.drop(version, one):
                gone.append(self._item(version, one, why or "made for another VMM, processor, agent or disk"))
        return gone

    async def _still_fits(self, version: VersionRow, stored: Stored) -> bool:
        try:
            return await self._shapes.fits(version, stored.row) is not None
        except (errors.ImageBroken, errors.SealBroken, errors.NotFound, KeyError):
            return False

    async def _check_unused(self, version: VersionRow) -> None:
        if version.state in ("pending", "building"):
            raise errors.StateConflict(f"image {version.reference} is being made", hint="try again later")
        found = await self._host.database.read(Users.read)
        users, pools = found.of(version), found.pools_of(version) if version.contains_session_state else ()
        names = sorted({row.name or row.id for row in users if row.state != State.READY})
        if pools and not names:
            ids = [pool.id for pool in pools]
            raise errors.StateConflict(
                f"image {version.reference} is what pool {', '.join(ids[:10])} is made of",
                hint=f"casemate pool rm {ids[0]}",
                evidence={"pools": ids},
            )
        if users and not names:
            raise errors.StateConflict(
                f"image {version.reference} is kept ready by a pool ({len(users)} sandboxes)",
                hint="casemate pool ls; remove the pool first, or wait until it has replaced them",
            )
        if names:
            many = f"{len(names)} sandbox{'es' * (len(names) > 1)}"
            raise errors.StateConflict(
                f"image {version.reference} is in use by {many}: {', '.join(names[:10])}",
                hint=f"casemate kill {' '.join(names[:10])}",
                evidence={"sandboxes": names},
            )

    async def _stored(self, version: VersionRow) -> list[Stored]:
        return await self._shapes.stored(version)

    def _item(self, version: VersionRow, stored: Stored, why: str) -> Item:
        return Item("snapshot", f"{stored.row.id} ({version.reference}, {said(stored.shape)})", why, stored.size_bytes)

    # ------------------------------------------------------------------- what lies there for nobody

    async def _drop_leftovers(self, *, dry_run: bool) -> list[Item]:
        """Folders of snapshots that no row knows; not what forks stand on, which goes with the last of them."""
        folders = await anyio.to_thread.run_sync(partial(_folders, self._host.snapshots, forks=False))
        if self._shapes.building:  # one of these folders may get its row in a moment
            return []
        known = {
            stored.row.id
            for version in await self._host.database.read(rows.all_versions)
            for stored in await self._stored(version)
        }
        gone = []
        for folder in folders:
            if folder.name not in known:
                size_bytes = await anyio.to_thread.run_sync(_size, folder)
                if not dry_run:
                    await anyio.to_thread.run_sync(remove_folder, folder)
                gone.append(Item("leftover", folder.name, "no version has this snapshot", size_bytes))
        return gone

    async def _needed(self, gone: Iterable[Item], lost: Set[int]) -> set[str]:
        """The artifacts that versions and snapshots name; those of *gone* are as good as gone, also in a dry run.

        *lost*: the ids of the versions among them; two tenants may each have one of the same name.
        """
        names = {item.name for item in gone}
        needed: set[str] = set()
        for version in await self._host.database.read(rows.all_versions):
            if version.id not in lost:
                needed |= set(_digests(version))
            for stored in await self._stored(version):
                if self._item(version, stored, "").name not in names:
                    needed |= (await anyio.to_thread.run_sync(needed_by, stored.folder / "manifest.json"))[0]
        for manifest in await anyio.to_thread.run_sync(self._of_sandboxes):
            needed |= (await anyio.to_thread.run_sync(needed_by, manifest))[0]
        return needed

    def _of_sandboxes(self) -> list[Path]:
        """The manifests of what sandboxes that live have stored: suspended ones, and what forks stand on. Blocks."""
        forks = _folders(self._host.snapshots, forks=True)
        return [*suspended(self._host.sandboxes), *(folder / "manifest.json" for folder in forks)]

    async def _drop_vmm_builds(self, gone: Iterable[Item], *, dry_run: bool) -> list[Item]:
        """VMM builds that are not installed, and that nothing stored was made with."""
        installed = (await self._host.driver.platform()).vmm_sha256
        lost = {item.name.split()[0] for item in gone if item.kind in ("snapshot", "leftover")}
        return await anyio.to_thread.run_sync(partial(self._sweep_vmm_builds, installed, lost, dry_run=dry_run))

    def _sweep_vmm_builds(self, installed: str, lost: set[str], *, dry_run: bool) -> list[Item]:
        snapshots = [path for path in self._host.snapshots.glob("*/manifest.json") if path.parent.name not in lost]
        needed = {installed} | installed_builds(self._host.vmm_builds)  # also of the VMM that is not in use here
        for manifest in (*snapshots, *suspended(self._host.sandboxes)):
            needed |= needed_by(manifest)[1]
        found = [path for path in sorted(self._host.vmm_builds.iterdir()) if path.is_dir()]
        items = []
        for folder in found:
            if folder.name not in needed:
                items.append(Item("vmm", folder.name, "nothing stored was made with it", _size(folder)))
                if not dry_run:
                    _remove_build(folder)
        return items

    def _sweep(self, needed: set[str], only: set[str] | None, also: set[str], dry_run: bool, why: str) -> list[Item]:
        """Delete artifacts (*only* these) that are not needed, nor named by the index unless *also* given up."""
        store, gone = self._host.workshop.store, []
        with self._host.workshop.at_rest() as named:
            for digest in store.digests():
                kept = digest in needed or digest in named - also
                if kept or (only is not None and digest not in only):
                    continue
                gone.append(Item("artifact", digest, why, store.path(digest).stat().st_blocks * 512))
                if not dry_run:
                    store.remove(digest)
        return gone


def _why_pruned(version: VersionRow) -> str | None:
    """Of a version as it is; None: not at all."""
    if not version.contains_session_state:
        return None
    if version.state == "failed":
        return "it failed"
    loose = version.state == "ready" and not version.active and version.tag is None
    return "not the active version, and without a tag" if loose else None


def to_json(items: Iterable[Item], *, dry_run: bool) -> dict[str, Any]:
    shown = [asdict(item) for item in items]
    return {"dry_run": dry_run, "removed": shown, "size_bytes": sum(item["size_bytes"] for item in shown)}


def _digests(version: VersionRow) -> list[str]:
    return [version.artifacts[part] for part in PARTS if part in version.artifacts]


def suspended(sandboxes: Path) -> list[Path]:
    """The manifests of suspended sandboxes. Blocks."""
    return sorted(sandboxes.glob("*/suspended/manifest.json"))


def _remove_build(folder: Path) -> None:
    """Under another name first: half a build must never look like one."""
    dying = folder.with_name(f".dying-{folder.name}")
    folder.rename(dying)
    remove_folder(dying)


def _folders(root: Path, *, forks: bool) -> list[Path]:
    """Of snapshots that are whole: those that *forks* made, or all others."""
    found = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith(BUILDING))
    return [folder for folder in found if (kind_said(folder) == "fork") == forks]


def _size(folder: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*"))
