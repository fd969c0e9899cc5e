"""Content-addressed artifacts: ``<root>/<sha256>``, mode 0444, written once and never changed.

Written by this class only; read by drivers and builds, as a path or a descriptor; deleted by ``remove``.
An artifact grows under ``<root>/.new-*`` and is linked to its name when it is complete and on the disk, so
what has a digest for a name is whole. Whoever writes holds the shared lock of ``<root>/.lock``; the sweep at
open takes the exclusive one and therefore only ever sees leftovers of the dead.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from casemate.errors import HostFull, ImageBroken, NotFound
from casemate.host import sync_folder
from casemate.images.identity import Identities
from casemate.images.locks import held

CHUNK_BYTES = 1 << 20
_ZEROS = bytes(CHUNK_BYTES)
LOCK_TIMEOUT_S = 60.0  # only a sweep, which is short, keeps writers waiting
NEW = ".new-"
DIGEST = re.compile(r"[0-9a-f]{64}")


def digest_of(source: Path | int) -> str:
    """The SHA-256 of a file, given by path or by a descriptor (which is read from its start, not moved)."""
    fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC) if isinstance(source, Path) else source
    try:
        own = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)  # with a place of its own, to look for holes
        try:
            sha = hashlib.sha256()
            for piece in _pieces(own):
                sha.update(piece)
            return sha.hexdigest()
        finally:
            os.close(own)
    finally:
        if fd is not source:
            os.close(fd)


def _pieces(fd: int) -> Iterator[bytes]:
    """All of the file, in order. Holes are not read: the kernel would make a page of zeros for each of theirs."""
    offset = 0
    while True:
        data = _data_from(fd, offset)
        while offset < data:
            yield _ZEROS[: data - offset]
            offset += min(CHUNK_BYTES, data - offset)
        if not (piece := os.pread(fd, CHUNK_BYTES, offset)):
            return
        yield piece
        offset += len(piece)


def _data_from(fd: int, offset: int) -> int:
    """Where the next data is, at *offset* or after it; the file's end where there is none."""
    try:
        return os.lseek(fd, offset, os.SEEK_DATA)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return max(offset, os.fstat(fd).st_size)


@dataclass(slots=True)
class Pending:
    """An artifact that is being written."""

    path: Path
    digest: str = ""


class Store:
    """The artifacts below *root*. Several processes may use one root at once."""

    def __init__(self, root: Path) -> None:
        root.mkdir(parents=True, exist_ok=True)
        self.root = root
        self._identities = Identities(root / ".verified")
        self.sweep()

    def path(self, digest: str) -> Path:
        """Where the artifact is. Raises NotFound when there is none, also for what is no digest."""
        path = self.root / digest
        if not DIGEST.fullmatch(digest) or not path.is_file():
            raise NotFound(f"no artifact {digest[:64]!r}", hint="build the image again: casemate image build")
        return path

    def has(self, digest: str) -> bool:
        return bool(DIGEST.fullmatch(digest)) and (self.root / digest).is_file()

    def digests(self) -> list[str]:
        return sorted(p.name for p in self.root.iterdir() if DIGEST.fullmatch(p.name))

    def add(self, source: Path) -> str:
        """Copy *source* in and return its digest; the same content twice is one artifact."""
        with self.new() as temp:
            shutil.copyfile(source, temp.path)
        return temp.digest

    def take(self, source: Path) -> str:
        """As add, but *source* itself moves in (it lies on the same file system and is the caller's own)."""
        with self.new() as temp:
            source.rename(temp.path)
        return temp.digest

    @contextmanager
    def new(self) -> Iterator[Pending]:
        """A path to write an artifact to; it enters the store when the block ends well, else it vanishes.

        Raises HostFull when the disk is full. The digest is known after the block.
        """
        with held(self.root / ".lock", shared=True, timeout_s=LOCK_TIMEOUT_S):
            pending = Pending(self.root / f"{NEW}{secrets.token_hex(8)}")
            try:
                yield pending
                pending.digest = self._enter(pending.path)
            except OSError as error:
                raise _full_or(error, self.root) from error
            finally:
                pending.path.unlink(missing_ok=True)

    def _enter(self, temp: Path) -> str:
        temp.chmod(0o444)
        fd = os.open(temp, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
            digest = digest_of(fd)
            if not self._link(temp, digest):
                os.replace(temp, self.root / digest)  # what stood there was broken
            sync_folder(self.root)
            if _same_inode(fd, self.root / digest):
                self._identities.remember(fd, digest)
        finally:
            os.close(fd)
        return digest

    def _link(self, temp: Path, digest: str) -> bool:
        """Give *temp* its name, or keep a sound artifact that has it; False when a broken one has it.

        Not rename: the loser of a race must not replace an inode that a machine already maps.
        """
        try:
            os.link(temp, self.root / digest)
        except FileExistsError:
            try:
                os.close(self.open(digest))
            except ImageBroken:
                return False
        temp.unlink()
        return True

    def verify(self, digest: str) -> None:
        """Hash the artifact in full, whatever is remembered of it. Raises ImageBroken, NotFound."""
        fd = os.open(self.path(digest), os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._verify(fd, digest)
        finally:
            os.close(fd)

    def open(self, digest: str) -> int:
        """A read-only descriptor of the artifact, hashed unless this very inode was since the host's boot.

        The caller closes it. Raises ImageBroken, NotFound.
        """
        fd = os.open(self.path(digest), os.O_RDONLY | os.O_CLOEXEC)
        try:
            if not self._identities.recognises(fd, digest):
                self._verify(fd, digest)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _verify(self, fd: int, digest: str) -> None:
        found = digest_of(fd)
        if found != digest:
            self._identities.forget(digest)
            raise ImageBroken(
                f"artifact {digest[:12]} has digest {found[:12]}: the file was changed or the disk failed",
                hint="remove it and build the image again: casemate image build --force",
                evidence={"path": str(self.root / digest), "expected": digest, "found": found},
            )
        self._identities.remember(fd, digest)

    def remove(self, digest: str) -> None:
        """Forget an artifact; machines that have it open keep it. Nothing happens when it is not there."""
        if DIGEST.fullmatch(digest):
            self._identities.forget(digest)
            (self.root / digest).unlink(missing_ok=True)

    def sweep(self) -> int:
        """Delete what writers that died left behind; how many. Does nothing while somebody writes."""
        with open(self.root / ".lock", "ab") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return 0
            leftovers = list(self.root.glob(f"{NEW}*"))
            for leftover in leftovers:
                leftover.unlink(missing_ok=True)
            return len(leftovers)


def _same_inode(fd: int, path: Path) -> bool:
    ours, theirs = os.fstat(fd), path.stat()
    return (ours.st_dev, ours.st_ino) == (theirs.st_dev, theirs.st_ino)


def _full_or(error: OSError, root: Path) -> Exception:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return HostFull(f"no space left for artifacts in {root}", hint="free some disk space and try again")
    return error
