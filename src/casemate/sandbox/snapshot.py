"""A stored snapshot: ``snapshots/<id>/{memory,state,disk,manifest.json}``.

Written by build/ under a temporary name and renamed whole; read by the supervisor of each
clone; never written again (mode 0444). Deleted with its image.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, Self

from casemate.errors import ImageBroken
from casemate.sandbox.spec import Shape
from casemate.vmm import Drive, MachineSpec, Platform, SnapshotFiles

FORMAT = 1


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

    @property
    def files(self) -> SnapshotFiles:
        return SnapshotFiles(memory=self.folder / "memory", state=self.folder / "state")

    @property
    def disk(self) -> Path:
        """The writable disk as it was when the vCPUs stopped; each clone gets a copy."""
        return self.folder / "disk"

    def machine(self, guest_id: str, disk: Path) -> MachineSpec:
        """What a clone named *guest_id* with its own *disk* consists of."""
        return machine_spec(guest_id, self.shape, self.root, self.agent, disk)

    def manifest(self) -> dict[str, Any]:
        body = asdict(self) | {"format": FORMAT, "root": str(self.root), "agent": str(self.agent)}
        del body["folder"]
        return body

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Raises ImageBroken for a folder without a whole manifest of a format this version knows."""
        try:
            body = json.loads((folder / "manifest.json").read_bytes())
            if body.pop("format") != FORMAT:
                raise ValueError("another format")
            paths = {"folder": folder, "root": Path(body["root"]), "agent": Path(body["agent"])}
            parts = {"shape": Shape(**body["shape"]), "platform": Platform(**body["platform"])}
            return cls(**{**body, **paths, **parts})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ImageBroken(
                f"snapshot {folder.name} cannot be read: {error}", hint="casemate image build --force"
            ) from error


def machine_spec(guest_id: str, shape: Shape, root: Path, agent: Path, disk: Path) -> MachineSpec:
    """The three drives every guest expects, in order: root, agent disk, writable disk."""
    return MachineSpec(
        guest_id=guest_id,
        vcpus=shape.vcpus,
        memory_mib=shape.memory_mib,
        drives=(Drive(root), Drive(agent), Drive(disk, writable=True)),
    )


Progress = Callable[[str, str, float | None], None]
"""``progress(step, message, fraction)``; called in the event loop, must not wait."""


class FindSnapshot(Protocol):
    """Lends the snapshot of an image in a shape for a block; builds one where there is none, if it may."""

    def __call__(
        self, tenant: str, ref: str, shape: Shape, *, build: bool, progress: Progress | None
    ) -> AbstractAsyncContextManager[Snapshot]: ...
