"""A stored snapshot: ``snapshots/<id>/{memory,state,disk,manifest.json}``.

Written by build/ under a temporary name and renamed whole; read by the supervisor of each
clone; never written again (mode 0444). Deleted with its image.

    {"format": 2, "id", "image", "tenant", "shape": {…}, "digests": {"memory", "state", "disk"},
     "platform": {…}, "kernel_release", "generation", "root", "agent", "mac"}

The MAC is over all the rest and the tenant: so over the digests, and by them over every byte a VMM is given.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, Self

from casemate.errors import ImageBroken
from casemate.sandbox.fitness import Made
from casemate.sandbox.seal import Kind, Seal
from casemate.sandbox.spec import Shape
from casemate.vmm import Drive, MachineSpec, Platform, SnapshotFiles
from casemate.wire import GENERATION

FORMAT = 2
KIND: Kind = "image-snapshot"
FILES = frozenset({"memory", "state", "disk"})
MAX_MANIFEST_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Snapshot:
    """*root* and *agent* are the shared read-only disks its guest has mounted."""

    id: str
    image: str  # name@version
    shape: Shape
    platform: Platform
    kernel_release: str
    folder: Path
    root: Path
    agent: Path
    digests: Mapping[str, str]  # of memory, state and disk: sha256
    tenant: str = "system"
    generation: int = GENERATION  # of its agent

    @property
    def files(self) -> SnapshotFiles:
        return SnapshotFiles(memory=self.folder / "memory", state=self.folder / "state")

    @property
    def disk(self) -> Path:
        """The writable disk as it was when the vCPUs stopped; each clone gets a copy."""
        return self.folder / "disk"

    @property
    def made(self) -> Made:
        return Made(self.platform, self.kernel_release, self.generation, self.root, self.agent)

    def machine(self, guest_id: str, disk: Path) -> MachineSpec:
        """What a clone named *guest_id* with its own *disk* consists of."""
        return machine_spec(guest_id, self.shape, self.root, self.agent, disk)

    def manifest(self, seal: Seal) -> dict[str, Any]:
        body = self._body()
        return body | {"mac": seal.over(self.tenant, KIND, body)}

    def _body(self) -> dict[str, Any]:
        named = {"id": self.id, "image": self.image, "tenant": self.tenant, "shape": asdict(self.shape)}
        return {"format": FORMAT} | named | {"digests": dict(self.digests)} | self.made.to_json()

    @classmethod
    def read(cls, folder: Path, seal: Seal, *, tenant: str) -> Self:
        """The snapshot of *tenant* in *folder*, as its manifest has it; its files have still to be compared.

        Raises ImageBroken for a folder without a whole manifest of this format, SealBroken for one that this host
        has not sealed for that tenant and under that name.
        """
        try:
            body = _manifest(folder)
            mac, body_format = body.pop("mac", None), body.get("format")
            if body_format != FORMAT:
                raise ValueError(f"it has format {body_format!r}, this version {FORMAT}")
        except (OSError, ValueError) as error:
            raise _unreadable(folder, error) from error
        seal.check(tenant, KIND, body | {"id": folder.name}, mac, what=f"snapshot {folder.name}")
        try:  # sealed, so by us; but maybe by another version
            made, shape = Made.from_json(body), Shape(**body["shape"])
            digests: Mapping[str, str] = body["digests"]
            if digests.keys() != FILES:
                raise ValueError("digests of other files")
        except (KeyError, TypeError, ValueError) as error:
            raise _unreadable(folder, error) from error
        return cls(
            id=folder.name,
            image=body["image"],
            shape=shape,
            platform=made.platform,
            kernel_release=made.kernel_release,
            folder=folder,
            root=made.root,
            agent=made.agent,
            digests=digests,
            tenant=tenant,
            generation=made.generation,
        )


def needed_by(manifest: Path) -> tuple[set[str], set[str]]:
    """(names of shared disks, digest of the VMM's build) that a manifest names, whoever wrote it: to keep those.

    Of a snapshot or of a suspended sandbox; nothing for one that cannot be read.
    """
    try:
        body = _manifest(manifest.parent)
        disks = {Path(body[part]).name for part in ("root", "agent") if part in body}
        return disks, {str(body["platform"]["vmm_sha256"])}
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return set(), set()


def machine_spec(guest_id: str, shape: Shape, root: Path, agent: Path, disk: Path) -> MachineSpec:
    """The three drives every guest expects, in order: root, agent disk, writable disk."""
    return MachineSpec(
        guest_id=guest_id,
        vcpus=shape.vcpus,
        memory_mib=shape.memory_mib,
        drives=(Drive(root), Drive(agent), Drive(disk, writable=True)),
    )


def _manifest(folder: Path) -> dict[str, Any]:
    with (folder / "manifest.json").open("rb") as file:
        body = json.loads(file.read(MAX_MANIFEST_BYTES))
    if not isinstance(body, dict):
        raise ValueError("no object")
    return body


def _unreadable(folder: Path, error: Exception) -> ImageBroken:
    return ImageBroken(f"snapshot {folder.name} cannot be read: {error}", hint="casemate image build --force")


Progress = Callable[[str, str, float | None], None]
"""``progress(step, message, fraction)``; called in the event loop, must not wait."""


class FindSnapshot(Protocol):
    """Lends the snapshot of an image in a shape for a block; builds one where there is none, if it may."""

    def __call__(
        self, tenant: str, ref: str, shape: Shape, *, build: bool, progress: Progress | None
    ) -> AbstractAsyncContextManager[Snapshot]: ...
