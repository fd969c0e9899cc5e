"""An image in one tar file, to carry it to another host. Snapshots don't travel: they are built again.

    casemate-image.json     {"format": 1, "name", "version", "config", "kernel_release",
                             "artifacts": {part: {"digest", "size"}}}
    sha256/<digest>         kernel, initrd and root, in this order

Written here for an export; read here, from whoever offers it, for an import. The reader takes nothing but just
these members in just this order: no name in a bundle is ever used as a path, every length is checked before it
is believed, and what is written lies under a temporary name of the store until all of its digests are right.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self

from casemate.errors import HostFull, ImageBroken, InvalidSpec
from casemate.images.store import DIGEST, Store

FORMAT = 1
MANIFEST = "casemate-image.json"
PARTS = ("kernel", "initrd", "root")
BLOCK = tarfile.BLOCKSIZE
MAX_MANIFEST_BYTES = 65_536
MAX_ARTIFACT_BYTES = {"kernel": 256 << 20, "initrd": 512 << 20, "root": 8 << 30}
MAX_TRAILER_BYTES = 1 << 20  # zeros: tar pads to its record size, 10 KiB, and some to more
SPARE_BYTES = 64 << 20
CHUNK_BYTES = 1 << 20
_TEXT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+~-]{0,99}")
_PATH = re.compile(r"/[A-Za-z0-9._/-]{0,199}")
_CONFIG = {"user": _TEXT, "cwd": _PATH, "built_in": _TEXT}


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a bundle says of itself; *artifacts* maps each part to its digest and its size in bytes."""

    name: str
    version: int
    config: Mapping[str, str]
    kernel_release: str
    artifacts: Mapping[str, tuple[str, int]]

    @property
    def size_bytes(self) -> int:
        return sum(size for _, size in self.artifacts.values())

    def to_bytes(self) -> bytes:
        artifacts = {part: {"digest": digest, "size": size} for part, (digest, size) in self.artifacts.items()}
        body = {"format": FORMAT, "name": self.name, "version": self.version, "config": dict(self.config)}
        return json.dumps(body | {"kernel_release": self.kernel_release, "artifacts": artifacts}, indent=1).encode()

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Raises InvalidSpec for whatever to_bytes does not write."""
        try:
            body = json.loads(data)
            if body["format"] != FORMAT:
                raise ValueError(f"format {body['format']!r}")
            config = {str(key): str(value) for key, value in body["config"].items() if _CONFIG[key].fullmatch(value)}
            artifacts = {part: _artifact(part, body["artifacts"][part]) for part in PARTS}
            if len(config) != len(body["config"]) or set(body["artifacts"]) != set(PARTS):
                raise ValueError("an odd field")
            return cls(
                name=_matching(_TEXT, body["name"]),
                version=_whole(body["version"], 1, 10**9),
                config=config,
                kernel_release=_matching(_TEXT, body["kernel_release"]),
                artifacts=artifacts,
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise _odd(f"its manifest is not one: {type(error).__name__} {str(error)[:100]}") from error


def _artifact(part: str, body: Mapping[str, Any]) -> tuple[str, int]:
    return _matching(DIGEST, body["digest"]), _whole(body["size"], 1, MAX_ARTIFACT_BYTES[part])


def _matching(pattern: re.Pattern[str], value: Any) -> str:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise ValueError(f"{value!r:.100} does not belong there")
    return value


def _whole(value: Any, low: int, high: int) -> int:
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"{value!r:.40} is not from {low} to {high}")
    return value


def _odd(what: str) -> InvalidSpec:
    return InvalidSpec(f"this is not an image that casemate exported: {what}", hint="make one: casemate image export")


# ------------------------------------------------------------------------------------------------- writing


def written(manifest: Manifest, files: Mapping[str, BinaryIO]) -> Iterator[bytes]:
    """The bytes of the bundle, piece by piece. *files* are the artifacts by part, open and at their start. Blocks."""
    said = manifest.to_bytes()
    yield _header(MANIFEST, len(said)) + said + _padding(len(said))
    for part in PARTS:
        digest, size = manifest.artifacts[part]
        yield _header(f"sha256/{digest}", size)
        left = size
        while left:
            piece = files[part].read(min(CHUNK_BYTES, left))
            if not piece:
                raise InvalidSpec(f"artifact {digest[:12]} is shorter than it was", hint="casemate image verify")
            left -= len(piece)
            yield piece
        yield _padding(size)
    yield bytes(2 * BLOCK)


def length(manifest: Manifest) -> int:
    """How many bytes ``written`` yields."""
    sizes = [len(manifest.to_bytes()), *(size for _, size in manifest.artifacts.values())]
    return sum(BLOCK + size + len(_padding(size)) for size in sizes) + 2 * BLOCK


def _header(name: str, size: int) -> bytes:
    member = tarfile.TarInfo(name)
    member.size, member.mode = size, 0o444
    return member.tobuf(tarfile.GNU_FORMAT)  # USTAR cannot say 8 GiB


def _padding(size: int) -> bytes:
    return bytes(-size % BLOCK)


# ------------------------------------------------------------------------------------------------- reading


@dataclass(frozen=True, slots=True)
class Staged:
    """A bundle whose digests are right, not yet in the store. Either ``enter`` or ``abandon`` is to be called."""

    manifest: Manifest
    _store: Store
    _pending: ExitStack

    def enter(self) -> None:
        """The artifacts are in the store from here on. Blocks. Raises HostFull, ImageBroken."""
        self._pending.close()
        for digest, _ in self.manifest.artifacts.values():
            if not self._store.has(digest):
                raise ImageBroken(f"artifact {digest[:12]} changed while it was written", hint="is the disk sound?")

    def abandon(self) -> None:
        """Nothing of it stays. Blocks."""
        given_up = InvalidSpec("given up")
        self._pending.__exit__(InvalidSpec, given_up, None)


def stage(source: BinaryIO, store: Store) -> Staged:
    """Read a whole bundle from *source*, which may be a pipe. Blocks. After a failure nothing of it stays.

    Raises InvalidSpec for what is no bundle, stops early or has a wrong digest; HostFull.
    """
    header = _member(source)
    if header.name != MANIFEST or not 0 < header.size <= MAX_MANIFEST_BYTES:
        raise _odd(f"it begins with {header.name[:80]!r}")
    manifest = Manifest.parse(_exactly(source, header.size))
    _skip_padding(source, header.size)
    check_space(store.root, manifest.size_bytes)
    with ExitStack() as pending:
        for part in PARTS:
            digest, size = manifest.artifacts[part]
            header = _member(source)
            if (header.name, header.size) != (f"sha256/{digest}", size):
                raise _odd(f"{header.name[:80]!r} stands where its {part} belongs")
            path = pending.enter_context(store.new()).path
            if _copy(source, path, size) != digest:
                raise _odd(f"the digest of its {part} is wrong; the file was changed or damaged")
            _skip_padding(source, size)
        _check_end(source)
        return Staged(manifest, store, pending.pop_all())
    raise AssertionError("unreachable")


def check_space(folder: Path, size_bytes: int) -> None:
    """Better said before a gigabyte is sent than after. Raises HostFull."""
    free = os.statvfs(folder)
    free_bytes = free.f_bavail * free.f_frsize
    if free_bytes < size_bytes + SPARE_BYTES:
        raise HostFull(
            f"the image takes {size_bytes >> 20} MiB, and {free_bytes >> 20} MiB are free",
            hint="casemate image prune, or more disk space",
        )


def _member(source: BinaryIO) -> tarfile.TarInfo:
    try:
        found = tarfile.TarInfo.frombuf(_exactly(source, BLOCK), "utf-8", "strict")
    except (tarfile.HeaderError, ValueError) as error:
        raise _odd(f"a header of its tar is not one ({error})") from error
    if found.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
        raise _odd(f"{found.name[:80]!r} is not a plain file")
    return found


def _exactly(source: BinaryIO, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        piece = source.read(size - len(data))
        if not piece:
            raise _odd("it stops before its end")
        data += piece
    return bytes(data)


def _copy(source: BinaryIO, path: Path, size: int) -> str:
    sha = hashlib.sha256()
    with path.open("xb") as file:
        while size:
            piece = _exactly(source, min(size, CHUNK_BYTES))
            sha.update(piece)
            file.write(piece)
            size -= len(piece)
    return sha.hexdigest()


def _skip_padding(source: BinaryIO, size: int) -> None:
    _exactly(source, -size % BLOCK)


def _check_end(source: BinaryIO) -> None:
    """Two blocks of zeros, and nothing but a few zeros more."""
    rest = _exactly(source, 2 * BLOCK)
    while not any(rest) and len(rest) <= MAX_TRAILER_BYTES:
        piece = source.read(CHUNK_BYTES)
        if not piece:
            return
        rest += piece
    raise _odd("there is more after its last file")
