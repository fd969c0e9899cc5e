"""The folder that a VMM and the daemon share: the VMM makes sockets and files in it, the daemon reads them.

Nobody but its machine's VMM and the daemon's user can reach it. The VMM makes its sockets in it, and before its guest
runs it is shut: from then on nothing more can be made there, only the files of a save be written. What lies there is
the word of a VMM that its guest may have taken over: no link is followed, and only files and our own pipes are read.
"""

from __future__ import annotations

import errno
import os
import secrets
import socket
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import anyio
import anyio.to_thread
import structlog

from casemate.errors import HostError, HostFull, VmmRefused
from casemate.host import own
from casemate.vmm.firecracker.plan import LOG, METRICS, SAVED_MEMORY, SAVED_STATE

FOLDER = "vmm"  # of the daemon's run: each machine has one in it
MAX_STATE_BYTES = 16 << 20  # a machine's has some 20 KB
PIPES = (LOG, METRICS)
SAVED = (SAVED_STATE, SAVED_MEMORY)
log = structlog.get_logger()


class Exchange:
    """Made by ``open_exchange``. *folder* is an open descriptor of it."""

    def __init__(self, path: Path, folder: int) -> None:
        self.path = path
        self.folder = folder

    def open_pipe(self, name: str) -> int:
        """Our end of a pipe the VMM writes to: never at its end, for we hold its other one as well."""
        return os.open(name, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=self.folder)

    def shut(self) -> None:
        """Let the VMM make nothing more in it. Blocks, briefly. Raises HostError."""
        try:
            for name in SAVED:
                new = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
                descriptor = os.open(name, new, 0o600, dir_fd=self.folder)
                os.fchmod(descriptor, 0o666)
                os.close(descriptor)
            os.fchmod(self.folder, 0o755)
        except OSError as error:
            raise HostError(f"{self.path} cannot be shut: {error.strerror}", hint="free some disk space") from error

    def take(self, name: str, into: Path) -> None:
        """Move the content of *name* to the new file *into*. Blocks. Raises VmmRefused, HostFull, HostError."""
        descriptor = self._open(name, os.O_RDONLY)
        try:
            size = os.fstat(descriptor).st_size
            if not 0 < size <= MAX_STATE_BYTES:
                raise VmmRefused(f"a device state of {size} bytes is none")
            with open(into, "xb", opener=lambda path, flags: os.open(path, flags | os.O_CLOEXEC, 0o600)) as file:
                file.write(os.pread(descriptor, size, 0))
        except OSError as error:
            kind = HostFull if error.errno in (errno.ENOSPC, errno.EDQUOT) else HostError
            raise kind(f"{into} could not be written: {error.strerror}", hint="free some disk space") from error
        finally:
            os.close(descriptor)
        self.drop(name)

    def drop(self, name: str) -> None:
        """Empty the file *name*. Blocks. Raises VmmRefused for what is no file, HostError."""
        descriptor = self._open(name, os.O_WRONLY)
        try:
            os.ftruncate(descriptor, 0)
        except OSError as error:
            raise HostError(f"{self.path / name} could not be emptied: {error.strerror}") from error
        finally:
            os.close(descriptor)

    def _open(self, name: str, mode: int) -> int:
        try:
            descriptor = os.open(name, mode | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.folder)
        except OSError as error:
            raise VmmRefused(f"the VMM left no file {name!r}: {error.strerror}") from error
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise VmmRefused(f"what the VMM left as {name!r} is no file")
        return descriptor


def connect_in(folder: int, name: str, made: socket.socket) -> None:
    """Connect *made* to the socket *name* in the open folder itself. Raises OSError; VmmRefused for what is no socket.

    A link would lead whoever is the daemon to any socket of the host's: another machine's stream, its own API.
    """
    descriptor = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    try:
        if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
            raise VmmRefused(f"what the VMM left as {name!r} is no socket")
        made.connect(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


def sweep_exchanges(run: Path) -> None:
    """Remove what an earlier daemon's VMMs left, all of whom have ended; as root also what is another uid's. Blocks."""
    try:
        remove_tree(run / FOLDER)
    except OSError as error:
        log.warning("folder kept", folder=str(run / FOLDER), error=str(error))


def remove_tree(path: Path) -> None:
    """Delete the folder *path*, if it is there, and all that a VMM made in it, however deep. Blocks. Raises OSError.

    Folders in folders are brought up instead of descended into: nobody's stack or descriptors bound their number.
    """
    try:
        top = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        while names := os.listdir(top):
            for name in names:
                if not _unlinked(name, top):
                    _bring_up(name, top)
    finally:
        os.close(top)
    path.rmdir()


def _bring_up(name: str, top: int) -> None:
    """Put the folders in the folder *name* of *top* beside it, and remove the rest, and itself."""
    below = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=top)
    try:
        for inner in os.listdir(below):
            if not _unlinked(inner, below):
                os.rename(inner, secrets.token_hex(16), src_dir_fd=below, dst_dir_fd=top)
    finally:
        os.close(below)
    os.rmdir(name, dir_fd=top)


def _unlinked(name: str, folder: int) -> bool:
    """False for a folder."""
    try:
        os.unlink(name, dir_fd=folder)
    except IsADirectoryError:
        return False
    return True


@asynccontextmanager
async def open_exchange(path: Path) -> AsyncIterator[Exchange]:
    """A fresh one at *path*, instead of what a killed daemon left; gone with all in it at the end. Raises HostError."""
    async with own(f"folder {path}", partial(anyio.to_thread.run_sync, remove_tree, path), limit_s=20.0):
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            remove_tree(path)
            path.mkdir()
            path.chmod(0o777)  # another uid than ours works in it, and to all others the folder above is closed
            for name in PIPES:
                os.mkfifo(path / name)
                (path / name).chmod(0o666)
            folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise HostError(f"{path} could not be made: {error.strerror}", hint="free some disk space") from error
        try:
            yield Exchange(path, folder)
        finally:
            os.close(folder)
