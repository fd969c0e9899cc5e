"""An image in one tar file, to carry it to another host. Snapshots don't travel: they are built again.

    casemate-image.json     {"format": 1, "name", "version", "config", "kernel_release",
                             "artifacts": {part: {"digest", "size"}}}
    sha256/<digest>         kernel, initrd and root, in this order

Written here for an export; read here, from whoever offers it, for an import. The reader takes nothing but just
these members in just this order (``tar.py``), and what is written lies under a temporary name of the store until
all of its digests are right.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, BinaryIO, Self

from casemate.errors import ImageBroken, InvalidSpec
from casemate.images import tar
from casemate.images.store import DIGEST, Store

FORMAT = 1
MANIFEST = "casemate-image.json"
PARTS = ("kernel", "initrd", "root")
MAX_MANIFEST_BYTES = 65_536
MAX_ARTIFACT_BYTES = {"kernel": 256 << 20, "initrd": 512 << 20, "root": 8 << 30, "agent": 512 << 20}
TEXT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+~-]{0,99}")
_PATH = re.compile(r"/[A-Za-z0-9._/-]{0,199}")
_CONFIG = {"user": TEXT, "cwd": _PATH, "built_in": TEXT}


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
            config = checked_config(body["config"])
            artifacts = {part: artifact(part, body["artifacts"][part]) for part in PARTS}
            if set(body["artifacts"]) != set(PARTS):
                raise ValueError("an odd field")
            return cls(
                name=matching(TEXT, body["name"]),
                version=whole(body["version"], 1, 10**9),
                config=config,
                kernel_release=matching(TEXT, body["kernel_release"]),
                artifacts=artifacts,
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise _odd(f"its manifest is not one: {type(error).__name__} {str(error)[:100]}") from error


def checked_config(body: Mapping[str, Any]) -> dict[str, str]:
    """A version's configuration. Raises ValueError, KeyError, TypeError, AttributeError for what is none."""
    return {key: matching(_CONFIG[key], value) for key, value in body.items()}


def artifact(part: str, body: Mapping[str, Any]) -> tuple[str, int]:
    """Its digest and its size. Raises ValueError, KeyError, TypeError for what says none."""
    return matching(DIGEST, body["digest"]), whole(body["size"], 1, MAX_ARTIFACT_BYTES[part])


def matching(pattern: re.Pattern[str], value: Any) -> str:
    """Raises ValueError."""
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise ValueError(f"{value!r:.100} does not belong there")
    return value


def whole(value: Any, low: int, high: int) -> int:
    """Raises ValueError."""
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"{value!r:.40} is not from {low} to {high}")
    return value


def _odd(what: str) -> InvalidSpec:
    return InvalidSpec(f"this is not an image that casemate exported: {what}", hint="make one: casemate image export")


# ------------------------------------------------------------------------------------------------- writing


def written(manifest: Manifest, files: Mapping[str, BinaryIO]) -> Iterator[bytes]:
    """The bytes of the bundle, piece by piece. *files* are the artifacts by part, open and at their start. Blocks."""
    said = manifest.to_bytes()
    yield tar.header(MANIFEST, len(said)) + said + tar.padding(len(said))
    for part in PARTS:
        yield from written_artifact(files[part], *manifest.artifacts[part])
    yield tar.END


def written_artifact(file: BinaryIO, digest: str, size: int) -> Iterator[bytes]:
    """One member."""
    yield tar.header(f"sha256/{digest}", size)
    yield from tar.pieces_of(file, size, f"artifact {digest[:12]}")
    yield tar.padding(size)


def length(manifest: Manifest) -> int:
    """How many bytes ``written`` yields."""
    sizes = [len(manifest.to_bytes()), *(size for _, size in manifest.artifacts.values())]
    return sum(map(tar.length_of, sizes)) + len(tar.END)


# ------------------------------------------------------------------------------------------------- reading


@dataclass(frozen=True, slots=True)
class Staged:
    """A bundle whose digests are right, not yet in the store. Either ``enter`` or ``abandon`` is to be called."""

    manifest: Manifest
    _store: Store
    _pending: ExitStack

    def enter(self) -> None:
        """The artifacts are in the store from here on. Blocks. Raises HostFull, ImageBroken."""
        enter(self._store, self._pending, self.manifest.artifacts)

    def abandon(self) -> None:
        """Nothing of it stays. Blocks."""
        abandon(self._pending)


def enter(store: Store, pending: ExitStack, artifacts: Mapping[str, tuple[str, int]]) -> None:
    """What ``stage_artifact`` has put off is done. Blocks. Raises HostFull, ImageBroken."""
    pending.close()
    for digest, _ in artifacts.values():
        if not store.has(digest):
            raise ImageBroken(f"artifact {digest[:12]} changed while it was written", hint="is the disk sound?")


def abandon(pending: ExitStack) -> None:
    """What ``stage_artifact`` has put off never comes about. Blocks."""
    given_up = InvalidSpec("given up")
    pending.__exit__(InvalidSpec, given_up, None)


def stage(source: BinaryIO, store: Store) -> Staged:
    """Read a whole bundle from *source*, which may be a pipe. Blocks. After a failure nothing of it stays.

    Raises InvalidSpec for what is no bundle, stops early or has a wrong digest; HostFull.
    """
    reader = tar.TarReader(source, _odd)
    manifest = Manifest.parse(reader.first(MANIFEST, MAX_MANIFEST_BYTES))
    tar.check_space(store.root, manifest.size_bytes)
    with ExitStack() as pending:
        for part in PARTS:
            stage_artifact(reader, store, pending, part, manifest.artifacts[part], _odd)
        reader.check_end()
        return Staged(manifest, store, pending.pop_all())
    raise AssertionError("unreachable")


def stage_artifact(
    reader: tar.TarReader,
    store: Store,
    pending: ExitStack,
    part: str,
    artifact: tuple[str, int],
    odd: Callable[[str], InvalidSpec],
) -> None:
    """The member that comes next, below a temporary name of the store until *pending* is closed. Blocks.

    Raises what *odd* makes, and HostFull.
    """
    digest, size = artifact
    reader.expect(f"sha256/{digest}", size, part)
    path = pending.enter_context(store.new()).path
    if reader.copy(path, size) != digest:
        raise odd(f"the digest of its {part} is wrong; the file was changed or damaged")
    reader.skip_padding(size)
