"""What was kept of a sandbox, in one tar, to carry it to another host of the same platform.

    casemate-snapshot.json    what it is: ``Manifest``
    memory, disk              a bitmap of its chunks of 64 KiB that hold data, first bit first; then those chunks
    state                     what the VMM wrote of its devices
    sha256/<digest>           kernel, initrd, root and agent disk, in this order, where the manifest says so

Written for an export, read for an import by ``session_transfer``. The reader takes just these members in just this
order; what it writes has a temporary name until every digest is right. A VMM parses the state, so it is for who
vouches for the sender: the sha256 of the whole tar is asked for, and compared before anything is used.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self, cast

from casemate.errors import HostFull, InvalidSpec
from casemate.images import Store, tar
from casemate.images.bundle import (
    MAX_MANIFEST_BYTES,
    TEXT,
    abandon,
    artifact,
    checked_config,
    matching,
    stage_artifact,
    whole,
    written_artifact,
)
from casemate.images.store import DIGEST
from casemate.sandbox import Shape
from casemate.sandbox.digests import chunks_with_data
from casemate.vmm import Platform

FORMAT = 1
MANIFEST = "casemate-snapshot.json"
PARTS = ("kernel", "initrd", "root", "agent")
FILES = ("memory", "disk", "state")
SPARSE = ("memory", "disk")
CHUNK_BYTES = 64 << 10
MIB = 1 << 20
MAX_MIB = 1 << 20
MAX_STATE_BYTES = 256 << 20
MAX_WORDS_CHARS = 16_384
_REFERENCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@:-]{0,199}")


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a bundle says of itself. *chunks*: how many of memory and disk hold data; *carries*: the artifacts too."""

    name: str
    tag: str | None
    parent: str | None
    config: Mapping[str, str]
    shape: Shape
    platform: Platform
    kernel_release: str
    generation: int
    digests: Mapping[str, str]
    chunks: Mapping[str, int]
    state_bytes: int
    artifacts: Mapping[str, tuple[str, int]]
    carries: bool

    def file_bytes(self, name: str) -> int:
        """How long memory or disk is, holes and all."""
        return (self.shape.memory_mib if name == "memory" else self.shape.disk_mib) * MIB

    def member_bytes(self, name: str) -> int:
        if name == "state":
            return self.state_bytes
        return _bitmap_bytes(self.file_bytes(name)) + self.chunks[name] * CHUNK_BYTES

    @property
    def own_bytes(self) -> int:
        """What memory, disk and state take on the disk."""
        return sum(self.chunks.values()) * CHUNK_BYTES + self.state_bytes

    def to_bytes(self) -> bytes:
        artifacts = {part: {"digest": digest, "size": size} for part, (digest, size) in self.artifacts.items()}
        return json.dumps({"format": FORMAT, **asdict(self), "artifacts": artifacts}, indent=1, sort_keys=True).encode()

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Raises InvalidSpec for whatever to_bytes does not write."""
        try:
            body = json.loads(data)
            if body.pop("format") != FORMAT:
                raise ValueError("another format")
            if set(body) != set(cls.__slots__) or set(body["artifacts"]) != set(PARTS):
                raise ValueError("an odd field")
            return cls(
                name=matching(TEXT, body["name"]),
                tag=None if body["tag"] is None else matching(TEXT, body["tag"]),
                parent=None if body["parent"] is None else matching(_REFERENCE, body["parent"]),
                config=checked_config(body["config"]),
                shape=_shape(body["shape"]),
                platform=_platform(body["platform"]),
                kernel_release=matching(TEXT, body["kernel_release"]),
                generation=whole(body["generation"], 1, 10**6),
                digests={name: matching(DIGEST, body["digests"][name]) for name in FILES},
                chunks={name: whole(body["chunks"][name], 0, MAX_MIB * MIB // CHUNK_BYTES) for name in SPARSE},
                state_bytes=whole(body["state_bytes"], 1, MAX_STATE_BYTES),
                artifacts={part: artifact(part, body["artifacts"][part]) for part in PARTS},
                carries=body["carries"] is True,
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise odd(f"its manifest is not one: {type(error).__name__} {str(error)[:100]}") from error


def _shape(body: Mapping[str, Any]) -> Shape:
    return Shape(
        vcpus=whole(body["vcpus"], 1, 1024),
        memory_mib=whole(body["memory_mib"], 1, MAX_MIB),
        disk_mib=whole(body["disk_mib"], 1, MAX_MIB),
    )


def _platform(body: Mapping[str, Any]) -> Platform:
    words = {name: _words(body[name]) for name in ("vmm", "version", "machine", "cpu", "cpu_features")}
    if body["accelerator"] not in ("kvm", "tcg") or set(body) != set(Platform.__slots__):
        raise ValueError("an odd platform")
    sha256, tsc_khz = matching(DIGEST, body["vmm_sha256"]), whole(body["tsc_khz"], 0, 10**9)
    return Platform(**words, accelerator=body["accelerator"], vmm_sha256=sha256, tsc_khz=tsc_khz)


def _words(value: Any) -> str:
    if not isinstance(value, str) or len(value) > MAX_WORDS_CHARS or not value.isprintable():
        raise ValueError(f"{value!r:.100} does not belong there")
    return value


def _bitmap_bytes(size: int) -> int:
    return -(-size // CHUNK_BYTES // 8)


def odd(what: str) -> InvalidSpec:
    return InvalidSpec(
        f"this is not a snapshot that casemate exported: {what}", hint="make one: casemate snapshots export"
    )


# ------------------------------------------------------------------------------------------------- writing


def bitmap_of(descriptor: int) -> bytes:
    """Which chunks of an open file hold data. Blocks. Raises OSError."""
    size = os.fstat(descriptor).st_size
    bitmap = bytearray(_bitmap_bytes(size))
    for chunk in chunks_with_data(descriptor, size, CHUNK_BYTES):
        bitmap[chunk // 8] |= 1 << chunk % 8
    return bytes(bitmap)


def count(bitmap: bytes) -> int:
    return int.from_bytes(bitmap, "little").bit_count()


def written(
    manifest: Manifest, files: Mapping[str, BinaryIO], bitmaps: Mapping[str, bytes], artifacts: Mapping[str, BinaryIO]
) -> Iterator[bytes]:
    """The bytes of the bundle, piece by piece; all *files* and *artifacts* open and at their start. Blocks."""
    said = manifest.to_bytes()
    yield tar.header(MANIFEST, len(said)) + said + tar.padding(len(said))
    for name in SPARSE:
        size = manifest.member_bytes(name)
        yield tar.header(name, size) + bitmaps[name]
        for chunk in _set_in(bitmaps[name]):
            files[name].seek(chunk * CHUNK_BYTES)
            yield from tar.pieces_of(files[name], CHUNK_BYTES, name)
        yield tar.padding(size)
    yield tar.header("state", manifest.state_bytes)
    yield from tar.pieces_of(files["state"], manifest.state_bytes, "state")
    yield tar.padding(manifest.state_bytes)
    for part in artifacts:
        yield from written_artifact(artifacts[part], *manifest.artifacts[part])
    yield tar.END


def length(manifest: Manifest) -> int:
    """How many bytes ``written`` yields."""
    carried = [size for _, size in manifest.artifacts.values()] if manifest.carries else []
    sizes = [len(manifest.to_bytes()), *map(manifest.member_bytes, FILES), *carried]
    return sum(map(tar.length_of, sizes)) + len(tar.END)


def _set_in(bitmap: bytes) -> Iterator[int]:
    for at, byte in enumerate(bitmap):
        if byte:
            yield from (at * 8 + bit for bit in range(8) if byte >> bit & 1)


# ------------------------------------------------------------------------------------------------- reading


@dataclass(frozen=True, slots=True)
class Arrived:
    """A bundle that is the one that was meant: its files lie in the folder, its artifacts not yet in the store."""

    manifest: Manifest
    pending: ExitStack

    def abandon(self) -> None:
        abandon(self.pending)


@dataclass(frozen=True, slots=True)
class Inbox:
    """Where a bundle is read to. *check* may refuse what its manifest says, before the rest is read."""

    folder: Path
    store: Store
    sha256: str
    check: Callable[[Manifest], None]


def read(source: BinaryIO, inbox: Inbox) -> Arrived:
    """Read a whole bundle from *source*, which may be a pipe. Blocks. After a failure the store has nothing of it.

    The digests of its artifacts are right, those of memory, disk and state have still to be compared.
    Raises InvalidSpec for what is no bundle, stops early or is another one than was meant; HostFull; what *check* does.
    """
    hashed = _Hashed(source)
    reader = tar.TarReader(cast(BinaryIO, hashed), odd)
    manifest = Manifest.parse(reader.first(MANIFEST, MAX_MANIFEST_BYTES))
    inbox.check(manifest)
    carried = sum(size for _, size in manifest.artifacts.values()) if manifest.carries else 0
    tar.check_space(inbox.folder, manifest.own_bytes + carried)
    with ExitStack() as pending:
        try:
            for name in SPARSE:
                _read_sparse(reader, inbox.folder / name, name, manifest)
            reader.expect("state", manifest.state_bytes, "state")
            reader.copy(inbox.folder / "state", manifest.state_bytes)
            reader.skip_padding(manifest.state_bytes)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise HostFull("no space left for a snapshot", hint="free some disk space") from error
            raise
        for part in PARTS if manifest.carries else ():
            stage_artifact(reader, inbox.store, pending, part, manifest.artifacts[part], odd)
        reader.check_end()
        if hashed.sha256.hexdigest() != inbox.sha256:
            raise InvalidSpec(
                f"its sha256 is {hashed.sha256.hexdigest()}, not {inbox.sha256}",
                hint="ask who exported it for what the export printed; it was changed, or is another one",
            )
        return Arrived(manifest, pending.pop_all())
    raise AssertionError("unreachable")


def _read_sparse(reader: tar.TarReader, path: Path, name: str, manifest: Manifest) -> None:
    size, member = manifest.file_bytes(name), manifest.member_bytes(name)
    reader.expect(name, member, name)
    bitmap = reader.exactly(_bitmap_bytes(size))
    if count(bitmap) != manifest.chunks[name] or int.from_bytes(bitmap, "little").bit_length() > size // CHUNK_BYTES:
        raise odd(f"the bitmap of its {name} says something else than its manifest")
    with path.open("xb") as file:
        file.truncate(size)
        for chunk in _set_in(bitmap):
            file.seek(chunk * CHUNK_BYTES)
            file.write(reader.exactly(CHUNK_BYTES))
    reader.skip_padding(member)


class _Hashed:
    """A source, and the sha256 of what was read of it."""

    def __init__(self, source: BinaryIO) -> None:
        self._source = source
        self.sha256 = hashlib.sha256()

    def read(self, size: int) -> bytes:
        piece = self._source.read(size)
        self.sha256.update(piece)
        return piece
