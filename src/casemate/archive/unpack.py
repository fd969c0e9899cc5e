"""A stream of tar as a folder. The stream is taken for hostile: see ``beneath`` for where a member may be made."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from dataclasses import dataclass, field

from casemate.archive.beneath import FOLDER, clean, open_beneath, stays_beneath
from casemate.archive.headers import MAX_NUMBER, Member
from casemate.archive.reader import Reader
from casemate.errors import ArchiveRefused

_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_NAMED_AT_MOST = 100
_LATEST_NS = 2**33 * 10**9


@dataclass(slots=True)
class Unpacked:
    """What came out. *left_out* names symbolic links that lead out of the folder, the first hundred of them."""

    members: int = 0
    size_bytes: int = 0
    left_out: list[str] = field(default_factory=list)
    left_out_count: int = 0


class Unpacker:
    """Makes what the archive says below the folder *root*, a descriptor it owns from now on.

    The folder itself keeps its mode unless it is a *new_root*. With *outward_links* symbolic links may lead
    anywhere: for where nothing outside is worth protecting.
    """

    def __init__(
        self, root: int, *, limit_bytes: int = MAX_NUMBER, outward_links: bool = False, new_root: bool = False
    ) -> None:
        self._root = root
        self._reader = Reader(limit_bytes)
        self._outward_links, self._new_root = outward_links, new_root
        self._file: _NewFile | None = None
        self._late: list[tuple[str, int]] = []  # folders whose mode would keep us from filling them
        self.done = Unpacked()

    def feed(self, data: bytes | memoryview) -> None:
        """Raises OSError, ArchiveRefused; what was made until then stays, but for the file under way."""
        for item in self._reader.feed(data):
            if isinstance(item, Member):
                self._make(item)
            elif self._file is not None:
                self._file.write(item)
                self.done.size_bytes += len(item)
                self._place_if_whole()

    def finish(self) -> Unpacked:
        """There is no more. Raises OSError, ArchiveRefused where the archive was cut off."""
        self._reader.finish()
        while self._late:
            path, mode = self._late.pop()
            folder = open_beneath(self._root, path, FOLDER)
            try:
                os.fchmod(folder, mode)
            finally:
                os.close(folder)
        return self.done

    def close(self) -> None:
        """Let go; a file that is not whole goes."""
        if self._file is not None:
            self._file.give_up()
            self._file = None
        if self._root >= 0:
            os.close(self._root)
            self._root = -1

    def _make(self, member: Member) -> None:
        path = clean(member.path)
        self.done.members += 1
        if member.kind == "dir":
            if not path and not self._new_root:
                return
            self._make_folder(path, member.mode & 0o777)
            return
        if not path:
            raise ArchiveRefused(f"{member.path[:200]!r} is no name for a {member.kind}")
        above, _, name = path.rpartition("/")
        if member.kind == "file":
            self._file = _NewFile(self._folder(above), name, member)
            self._place_if_whole()
        elif self._outward_links or stays_beneath(path, member.target):
            _link(self._folder(above), name, member.target)
        else:
            self.done.left_out_count += 1
            if len(self.done.left_out) < _NAMED_AT_MOST:
                self.done.left_out.append(path)

    def _place_if_whole(self) -> None:
        if self._file is not None and not self._file.left:
            file, self._file = self._file, None
            try:
                file.place()
            finally:
                file.give_up()

    def _make_folder(self, path: str, mode: int) -> None:
        folder = self._folder(path)
        try:
            os.fchmod(folder, mode | 0o700)
        finally:
            os.close(folder)
        if mode & 0o700 != 0o700:
            self._late.append((path, mode))

    def _folder(self, path: str) -> int:
        """Opened, and made where it is missing."""
        try:
            return open_beneath(self._root, path, FOLDER)
        except FileNotFoundError:
            above, _, name = path.rpartition("/")
        parent = self._folder(above) if above else os.dup(self._root)
        try:
            with suppress(FileExistsError):  # made meanwhile; if it is no folder, opening says so
                os.mkdir(name, 0o755, dir_fd=parent)
            return open_beneath(parent, name, FOLDER)
        finally:
            os.close(parent)


class _NewFile:
    """A file under a name of its own until it is whole. Owns *folder* and itself."""

    def __init__(self, folder: int, name: str, member: Member) -> None:
        self._folder, self._name, self._member = folder, name, member
        self._temporary = f".casemate-{os.urandom(8).hex()}"
        self.left = member.size
        try:
            self._fd = open_beneath(folder, self._temporary, _NEW_FILE, 0o600)
        except OSError:
            os.close(folder)
            raise

    def write(self, piece: bytes) -> None:
        self.left -= len(piece)
        view = memoryview(piece)
        while view:
            view = view[os.write(self._fd, view) :]

    def place(self) -> None:
        os.fchmod(self._fd, self._member.mode & 0o777)
        when = min(self._member.mtime_ns, _LATEST_NS)
        os.utime(self._fd, ns=(when, when))
        os.rename(self._temporary, self._name, src_dir_fd=self._folder, dst_dir_fd=self._folder)
        self._temporary = ""

    def give_up(self) -> None:
        """Close it, and remove it unless it has its place."""
        if self._fd < 0:
            return
        try:
            if self._temporary:
                os.unlink(self._temporary, dir_fd=self._folder)
        finally:
            os.close(self._fd)
            os.close(self._folder)
            self._fd = self._folder = -1


def _link(folder: int, name: str, target: str) -> None:
    """A symbolic link, in the place of whatever is no folder. Owns *folder*."""
    temporary = f".casemate-{os.urandom(8).hex()}"
    try:
        if not target or "\0" in target:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), name)
        os.symlink(target, temporary, dir_fd=folder)
        try:
            os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
        except OSError:
            os.unlink(temporary, dir_fd=folder)
            raise
    finally:
        os.close(folder)
