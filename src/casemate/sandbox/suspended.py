"""A suspended sandbox on the disk: ``sandboxes/<id>/suspended/{state,difference,disk,manifest.json}``.

Written as ``suspended.new`` and renamed whole: the rename is the moment from which on it is suspended. Read by a
resume, which checks the host's seal and every digest before a VMM gets any of it; dropped when that has succeeded.
*difference*: the pages its guest wrote over the memory it was restored from; *disk*: its writable disk.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Self

from casemate.errors import ImageBroken, SealBroken
from casemate.host import remove_folder, sync_folder
from casemate.images import digest_of
from casemate.sandbox.fitness import Made
from casemate.sandbox.seal import Seal
from casemate.sandbox.snapshot import Snapshot
from casemate.sandbox.spec import SandboxSpec, Shape, SuspendedFacts
from casemate.vmm import Platform

FORMAT = 1
FOLDER, NEW, DROPPED = "suspended", "suspended.new", "suspended.dropped"
PARTS = ("state", "difference", "disk")  # without a difference where the whole memory was saved
SPARSE = ("disk", "memory")
OWN_MEMORY = "memory-"
BLOCK_BYTES = 4096
READ_BYTES = 1 << 20
MAX_MANIFEST = 1 << 20


@dataclass(frozen=True, slots=True)
class Suspended:
    """*own_memory*: the file in its folder that is under the difference, None for its snapshot's; *base*: its sha256.

    *spec*: with env, user and cwd, for a boot from the disk.
    """

    id: str
    tenant: str
    snapshot: str
    image: str
    shape: Shape
    platform: Platform
    kernel_release: str
    generation: int
    root: Path
    agent: Path
    own_memory: str | None
    base: str
    digests: Mapping[str, str]
    facts: SuspendedFacts
    spec: Mapping[str, Any] = field(repr=False)
    mac: str = ""

    @property
    def made(self) -> Made:
        return Made(self.platform, self.kernel_release, self.generation, self.root, self.agent)

    def as_snapshot(self, folder: Path) -> Snapshot:
        """What its machine is made of, where it stands on no snapshot any more."""
        return Snapshot(
            id=self.snapshot,
            image=self.image,
            shape=self.shape,
            platform=self.platform,
            kernel_release=self.kernel_release,
            folder=folder,
            root=self.root,
            agent=self.agent,
            digests={"memory": self.base},
            generation=self.generation,
        )

    def sealed(self, seal: Seal) -> dict[str, Any]:
        """The manifest's body with its MAC."""
        body = self._body()
        return body | {"mac": seal.over(self.tenant, "suspended-sandbox", body)}

    def check(self, seal: Seal) -> None:
        """Raises SealBroken unless all it says is what this host once sealed."""
        seal.check(self.tenant, "suspended-sandbox", self._body(), self.mac, what=f"suspended sandbox {self.id}")

    def _body(self) -> dict[str, Any]:
        body = asdict(self) | {"format": FORMAT, "root": str(self.root), "agent": str(self.agent)}
        del body["mac"]
        return body

    def user_spec(self) -> SandboxSpec:
        """Raises ImageBroken for what this version cannot take."""
        try:
            return SandboxSpec(**self.spec)
        except TypeError as error:
            raise _broken(self.id, error) from error

    @classmethod
    def read(cls, folder: Path) -> Self:
        """What is in the sandbox's *folder*, unchecked. Raises ImageBroken where no whole manifest is."""
        try:
            with opened(folder / FOLDER, "manifest.json") as file:
                if os.fstat(file.fileno()).st_size > MAX_MANIFEST:
                    raise ValueError("too long")
                body = json.loads(file.read(MAX_MANIFEST))
            if body.pop("format") != FORMAT:
                raise ValueError("another format")
            parts = {
                "shape": Shape(**body["shape"]),
                "platform": Platform(**body["platform"]),
                "facts": SuspendedFacts(**body["facts"]),
                "root": Path(body["root"]),
                "agent": Path(body["agent"]),
            }
            return cls(**{**body, **parts})
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise _broken(folder.name, error) from error


@dataclass(frozen=True, slots=True)
class Place:
    """Where the parts of one sandbox lie. Every method blocks."""

    folder: Path  # sandboxes/<id>

    @property
    def disk(self) -> Path:
        """The disk that a running one writes."""
        return self.folder / "disk"

    @property
    def new(self) -> Path:
        return self.folder / NEW

    @property
    def kept(self) -> Path:
        return self.folder / FOLDER

    def begin(self) -> None:
        remove_folder(self.new)
        self.new.mkdir(mode=0o700)

    def give_up(self) -> None:
        """Of a suspend that did not come about nothing stays."""
        remove_folder(self.new)

    def take_disk(self) -> None:
        """The disk as it is now, without a copy: a resumed sandbox writes a copy of its own."""
        os.link(self.disk, self.new / "disk")

    def seal(self, body: Mapping[str, Any]) -> None:
        """The manifest, durable, and then the one rename that makes it a suspended sandbox."""
        with open(self.new / "manifest.json", "x", opener=_private) as file:
            json.dump(body, file, indent=1, sort_keys=True)
            file.flush()
            os.fsync(file.fileno())
        sync_folder(self.new)
        self.new.rename(self.kept)
        try:
            sync_folder(self.folder)
        except OSError:  # it runs on, and then nothing that is older may pass for it
            self.kept.rename(self.new)
            raise
        with suppress(OSError):  # tidy and the next resume remove it too
            self.disk.unlink()

    def drop(self, own_memory: str | None) -> None:
        """It runs again: from one rename on it is suspended no more, whatever comes of the rest."""
        gone = self.folder / DROPPED
        remove_folder(gone)
        self.kept.rename(gone)
        with suppress(OSError):  # a crash of the host may find it suspended; what it did since is lost then anyhow
            sync_folder(self.folder)
            remove_folder(gone)
            self.forget_memories(own_memory)

    def tidy(self) -> None:
        """Remove what an earlier daemon left beside what it had stored."""
        for name in (NEW, DROPPED):
            remove_folder(self.folder / name)
        self.disk.unlink(missing_ok=True)
        try:
            wanted = Suspended.read(self.folder).own_memory
        except ImageBroken:  # who looks into it may want all of it
            return
        self.forget_memories(wanted)

    def forget_memories(self, but: str | None) -> None:
        """Remove what it was booted into before, or in vain."""
        for path in self.folder.glob(f"{OWN_MEMORY}*"):
            if path.name != but:
                path.unlink()


def check_parts(place: Place, found: Suspended) -> None:
    """Blocks. Raises SealBroken unless the files are those that the manifest has the digests of."""
    paths = {name: place.kept / name for name in PARTS if name in found.digests}
    wanted = dict(found.digests)
    if found.own_memory is not None:
        paths["memory"], wanted["memory"] = place.folder / found.own_memory, found.base
    for name, path in paths.items():
        if _digest(path, name, found.id) != wanted[name]:
            raise SealBroken(
                f"suspended sandbox {found.id}: its {name} is not what was stored",
                hint="it is not given to a VMM; find out who can write in the home, and kill the sandbox",
                evidence={"what": name},
            )


def check_disk(place: Place, found: Suspended) -> None:
    """The same of the disk alone, for who needs no more of it."""
    if _digest(place.kept / "disk", "disk", found.id) != found.digests.get("disk"):
        raise SealBroken(
            f"suspended sandbox {found.id}: its disk is not what was stored",
            hint="find out who can write in the home, and kill the sandbox",
            evidence={"what": "disk"},
        )


def _digest(path: Path, name: str, sandbox: str) -> str:
    try:
        return digest_of_part(path, sparse=name in SPARSE)
    except OSError as error:
        raise _broken(sandbox, error) from error


def digest_of_part(path: Path, *, sparse: bool) -> str:
    """Blocks. Raises OSError."""
    with opened(path.parent, path.name) as file:
        return digest_of_data(file) if sparse else digest_of(file.fileno())


@contextmanager
def opened(folder: Path, name: str) -> Iterator[BinaryIO]:
    """The file *name* in *folder* itself: through no link, and nothing that a reader would wait for. Raises OSError."""
    within = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=within)
    finally:
        os.close(within)
    with open(descriptor, "rb", buffering=0) as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, f"{name} is no file")
        yield file


def digest_of_data(file: BinaryIO) -> str:
    """sha256 of a sparse file: of its size, and of each block of it that is not zero with its place. Blocks.

    Blocks are at fixed places and zeros left out, so where a file system keeps its holes does not matter.
    """
    digest, size = hashlib.sha256(), os.fstat(file.fileno()).st_size
    digest.update(size.to_bytes(8, "little"))
    for start, end in _data_of(file.fileno(), size):
        for at in range(start, end, READ_BYTES):
            _add(digest.update, os.pread(file.fileno(), min(READ_BYTES, end - at), at), at)
    return digest.hexdigest()


def _add(update: Callable[[bytes], object], piece: bytes, at: int) -> None:
    for offset in range(0, len(piece), BLOCK_BYTES):
        block = piece[offset : offset + BLOCK_BYTES]
        if block.count(0) != len(block):
            update((at + offset).to_bytes(8, "little"))
            update(block)


def _data_of(descriptor: int, size: int) -> Iterator[tuple[int, int]]:
    """Where a sparse file has data, in whole blocks, in order, none twice."""
    at = 0
    while at < size:
        try:
            start = os.lseek(descriptor, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return  # a hole to the end
        end = os.lseek(descriptor, start, os.SEEK_HOLE)
        start = max(at, start - start % BLOCK_BYTES)
        at = min(size, -(-end // BLOCK_BYTES) * BLOCK_BYTES)
        yield start, at


def stored_bytes(folder: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in folder.iterdir())


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


def _broken(name: str, error: Exception) -> ImageBroken:
    return ImageBroken(
        f"suspended sandbox {name} cannot be read: {error}", hint="restore its folder from a backup, or kill it"
    )
