"""A sandbox that is not there, copied: what ``Sandboxes`` does for who keeps one, without a machine."""

from __future__ import annotations

import json
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.unit.build.build_world import DEFAULT, KERNEL_RELEASE, TENANT, World

from casemate.build.snapshot import FOLDER_MODE
from casemate.images import digest_of
from casemate.sandbox import Shape, Snapshot
from casemate.sandbox.digests import digest_of_memory
from casemate.sandbox.snapshot import SnapshotKind, TakenFacts

MIB = 1 << 20
FACTS = TakenFacts(at=1.0, pause_ms=12.5, frozen_ms=30.0, took_ms=400.0, dirty_bytes=4096)


async def nothing() -> None: ...


@dataclass
class OneSandbox:
    """*before* and *after* run around what is written; either may raise or wait."""

    world: World
    image: str = "python@1"
    tenant: str = TENANT
    shape: Shape = DEFAULT
    before: Callable[[], Awaitable[None]] = nothing
    after: Callable[[], Awaitable[None]] = nothing
    content: bytes = b"a variable"
    snapshot: str = ""
    image_tenant: str | None = None
    kind: SnapshotKind = "user"
    asked: list[dict[str, Any]] = field(default_factory=list)

    def get(self, tenant: str, ref: str) -> Any:
        assert tenant == self.tenant
        named = {"image": self.image, "image_tenant": self.image_tenant, "snapshot": self.snapshot}
        info = {"id": "sandbox", "tenant": tenant, **named}
        shape = {"vcpus": self.shape.vcpus, "memory_mib": self.shape.memory_mib, "disk_mib": self.shape.disk_mib}
        return SimpleNamespace(info=SimpleNamespace(**info, **shape))

    async def take(
        self, tenant: str, ref: str, *, image: str, snapshot_id: str | None = None, **asked: Any
    ) -> Snapshot:
        self.asked.append({"ref": ref, "image": image, **asked})
        await self.before()
        snapshot = await self.written(snapshot_id, image)
        await self.after()
        return snapshot

    async def written(self, snapshot_id: str, image: str) -> Snapshot:
        host = self.world.host
        version = await self.world.database.read(_named, self.image)
        folder = host.snapshots / snapshot_id
        folder.mkdir(mode=FOLDER_MODE)
        _sparse(folder / "memory", self.shape.memory_mib, self.content)
        _sparse(folder / "disk", self.shape.disk_mib, b"disk of " + self.content)
        (folder / "state").write_bytes(b"state of " + self.content)
        digests = {name: digest_of_memory(folder / name) for name in ("memory", "disk")}
        snapshot = Snapshot(
            id=snapshot_id,
            image=image,
            shape=self.shape,
            platform=await host.driver.platform(),
            kernel_release=KERNEL_RELEASE,
            folder=folder,
            root=host.workshop.store.path(version.artifacts["root"]),
            agent=host.workshop.agent(),
            digests=digests | {"state": digest_of(folder / "state")},
            tenant=self.tenant,
            kind=self.kind,
            parent_sandbox="sandbox",
            taken=FACTS,
        )
        (folder / "manifest.json").write_text(json.dumps(snapshot.manifest(host.seal)))
        for path in folder.iterdir():
            path.chmod(0o444)
        return snapshot


def _named(connection: Any, reference: str) -> Any:
    from casemate.storage import images as rows

    return next(version for version in rows.all_versions(connection) if version.reference == reference)


def _sparse(path: Path, size_mib: int, content: bytes) -> None:
    """Something at the start, in the middle and at the very end; the rest is holes."""
    with path.open("xb") as file:
        for at in (0, size_mib * MIB // 2, size_mib * MIB - len(content)):
            file.seek(at)
            file.write(content)
    assert os.stat(path).st_size == size_mib * MIB
