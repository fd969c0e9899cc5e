"""A stored snapshot: ``snapshots/<id>/{memory,state,disk,manifest.json}``.

Written by build/ under a temporary name and renamed whole; read by the supervisor of each
clone; never written again (mode 0444). Deleted with its image.

    {"format": 2, "id", "image", "tenant", "shape": {…}, "digests": {"memory", "state", "disk"},
     "platform": {…}, "kernel_release", "generation", "root", "agent", "mac"}

One of a living sandbox (a *session*: what its user's processes held in memory is in it) is written by ``copying``, has
also "kind", "parent_sandbox" and "taken", a fork's "image_tenant", what a user has kept "surroundings", and is sealed
as another kind of thing. A ``user`` snapshot is deleted with its image, what a ``fork`` makes with the last sandbox
that stands on it (``templates``).

The MAC is over all the rest and the tenant: so over the digests, and by them over every byte a VMM is given.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol, Self

from casemate.errors import ImageBroken
from casemate.host import sync_file, sync_folder
from casemate.images import digest_of
from casemate.sandbox.digests import digest_of_sparse
from casemate.sandbox.fitness import Made
from casemate.sandbox.seal import Kind, Seal
from casemate.sandbox.spec import SandboxSpec, Shape, ShapeWish
from casemate.vmm import UNLIMITED, Drive, MachineSpec, Platform, RateLimit, SnapshotFiles
from casemate.wire import GENERATION

FORMAT = 2
WORKING_SET = "working-set"
FILES = frozenset({"memory", "state", "disk"})
SPARSE = ("memory", "disk")
MAX_MANIFEST_BYTES = 1 << 20
SnapshotKind = Literal["image", "user", "fork"]
SESSIONS: tuple[SnapshotKind, ...] = ("user", "fork")


@dataclass(frozen=True, slots=True)
class TakenFacts:
    """How a living sandbox was copied. *pause_ms*: its vCPUs stood still; *frozen_ms*: its user's processes did.

    *took_ms*: from the request on, until all was written; *dirty_bytes*: what its guest had written to its memory.
    """

    at: float
    pause_ms: float
    frozen_ms: float
    took_ms: float
    dirty_bytes: int


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What its programs find. In the memory of what is made of it all that is so; a boot from a disk needs it told."""

    env: Mapping[str, str] = field(repr=False)
    user: str | None
    cwd: str | None

    @classmethod
    def of(cls, spec: SandboxSpec) -> Self:
        return cls(spec.env, spec.user, spec.cwd)

    def under(self, spec: SandboxSpec) -> SandboxSpec:
        """*spec*, with these where it says nothing itself. Raises InvalidSpec when both environments are too much."""
        env = {**self.env, **spec.env}
        return replace(spec, env=env, user=spec.user or self.user, cwd=spec.cwd or self.cwd)


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
    digests: Mapping[str, str]  # of memory, state and disk: sha256; a session's sparse ones by ``digests``
    tenant: str = "system"
    generation: int = GENERATION  # of its agent
    kind: SnapshotKind = "image"
    parent_sandbox: str | None = None  # whose state a session is
    taken: TakenFacts | None = None  # how that was
    image_tenant: str | None = None  # of a fork, whose the image is that it has; None: an older version made it
    surroundings: Surroundings | None = None  # of what a user has kept: those its sandbox was given

    @property
    def image_owner(self) -> str | None:
        """Whose the image is of this name and version; None where nobody has written it down."""
        return self.image_tenant if self.kind == "fork" else self.tenant

    @property
    def is_session(self) -> bool:
        """It is the state of a living sandbox, and not of a guest that nobody has used."""
        return self.kind != "image"

    @property
    def sealed_as(self) -> Kind:
        return "session-snapshot" if self.is_session else "image-snapshot"

    @property
    def files(self) -> SnapshotFiles:
        return SnapshotFiles(self.folder / "memory", self.folder / "state", working_set=self.folder / WORKING_SET)

    @property
    def disk(self) -> Path:
        """The writable disk as it was when the vCPUs stopped; each clone gets a copy."""
        return self.folder / "disk"

    @property
    def made(self) -> Made:
        return Made(self.platform, self.kernel_release, self.generation, self.root, self.agent)

    def machine(self, guest_id: str, disk: Path, limit: RateLimit = UNLIMITED) -> MachineSpec:
        """What a clone named *guest_id* with its own *disk*, as fast as *limit* lets it be, consists of."""
        return machine_spec(guest_id, self.shape, self.root, self.agent, disk, limit)

    def digest_of(self, name: str, descriptor: int) -> str:
        """What the open file *descriptor* has, to be held against ``digests[name]``. Blocks. Raises OSError."""
        if self.is_session and name in SPARSE:
            return digest_of_sparse(descriptor)
        return digest_of(descriptor)

    def sync(self) -> None:
        """Have all of it on the disk, that is whole here: a crash of the host keeps it then. Blocks. Raises OSError."""
        for name in (*FILES, "manifest.json"):
            sync_file(self.folder / name)
        sync_folder(self.folder)
        sync_folder(self.folder.parent)

    def manifest(self, seal: Seal) -> dict[str, Any]:
        body = self._body()
        return body | {"mac": seal.over(self.tenant, self.sealed_as, body)}

    def _body(self) -> dict[str, Any]:
        named = {"id": self.id, "image": self.image, "tenant": self.tenant, "shape": asdict(self.shape)}
        body = {"format": FORMAT} | named | {"digests": dict(self.digests)} | self.made.to_json()
        if not self.is_session:
            return body
        taken = asdict(self.taken) if self.taken else None
        body |= {"kind": self.kind, "parent_sandbox": self.parent_sandbox, "taken": taken}
        if self.image_tenant is not None:
            body["image_tenant"] = self.image_tenant
        if self.surroundings is not None:
            body["surroundings"] = asdict(self.surroundings)
        return body

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
        sealed_as: Kind = "session-snapshot" if body.get("kind") in SESSIONS else "image-snapshot"
        seal.check(tenant, sealed_as, body | {"id": folder.name}, mac, what=f"snapshot {folder.name}")
        try:  # sealed, so by us; but maybe by another version
            made, shape = Made.from_json(body), Shape(**body["shape"])
            taken = TakenFacts(**body["taken"]) if body.get("taken") else None
            surroundings = Surroundings(**body["surroundings"]) if "surroundings" in body else None
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
            kind=body["kind"] if sealed_as == "session-snapshot" else "image",
            parent_sandbox=body.get("parent_sandbox"),
            taken=taken,
            image_tenant=body.get("image_tenant"),
            surroundings=surroundings,
        )


@dataclass(frozen=True, slots=True)
class Taken:
    """The state of a living sandbox in *folder*: memory, state, disk. Not sealed, and maybe not on the disk yet.

    *base*: the file that its memory is a copy of with changes, if any; it may be gone by now.
    """

    folder: Path
    facts: TakenFacts
    made_of: Snapshot  # what its machine stood on
    base: Path | None = None


def kind_said(folder: Path) -> SnapshotKind | None:
    """The kind of snapshot that a manifest says to be of, whoever wrote it; None where none can be read. Blocks."""
    try:
        kind = _manifest(folder).get("kind", "image")
    except (OSError, ValueError):
        return None
    return next((known for known in ("image", *SESSIONS) if known == kind), None)


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


def machine_spec(
    guest_id: str, shape: Shape, root: Path, agent: Path, disk: Path, limit: RateLimit = UNLIMITED
) -> MachineSpec:
    """The three drives every guest expects, in order: root, agent disk, writable disk."""
    return MachineSpec(
        guest_id=guest_id,
        vcpus=shape.vcpus,
        memory_mib=shape.memory_mib,
        drives=(Drive(root), Drive(agent), Drive(disk, writable=True, limit=limit)),
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
        self, tenant: str, ref: str, shape: Shape | ShapeWish, *, build: bool, progress: Progress | None
    ) -> AbstractAsyncContextManager[Snapshot]: ...
