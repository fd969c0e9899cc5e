"""Opening below a folder and nowhere else: no ``..``, no absolute name, no symbolic link on the way or at its end.

Source: openat2(2), RESOLVE_BENEATH and RESOLVE_NO_SYMLINKS. Where the kernel or a filter does not know the call,
each step is opened by itself with O_NOFOLLOW, which comes to the same for names without ``..``.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys

from casemate.archive.headers import MAX_PATH_BYTES
from casemate.errors import ArchiveRefused

MAX_PARTS = 256
_OPENAT2 = 437  # on every architecture
_BENEATH, _NO_SYMLINKS, _NO_MAGICLINKS = 0x08, 0x04, 0x02
_RESOLVE = _BENEATH | _NO_SYMLINKS | _NO_MAGICLINKS
_NOT_HERE = (errno.ENOSYS, errno.EPERM)  # EPERM: older container filters; a true one comes again from the steps
FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW
_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def clean(path: str) -> str:
    """*path* without needless dots and slashes; empty for the folder itself. Raises ArchiveRefused if it leads out."""
    if path.startswith("/") or "\0" in path or len(os.fsencode(path)) > MAX_PATH_BYTES:
        raise ArchiveRefused(f"{path[:200]!r} is not a name below the folder")
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if len(parts) > MAX_PARTS:
        raise ArchiveRefused(f"{path[:200]!r} is over {MAX_PARTS} folders deep")
    if ".." in parts:
        raise ArchiveRefused(f"{path[:200]!r} leads out of the folder")
    return "/".join(parts)


def open_beneath(root: int, path: str, flags: int, mode: int = 0) -> int:
    """A descriptor of *path*, which is clean, below the folder *root*. Raises OSError: ELOOP for a link."""
    if _libc is not None:
        # struct open_how: flags, mode, resolve
        how = struct.pack("QQQ", flags | os.O_CLOEXEC, mode if flags & os.O_CREAT else 0, _RESOLVE)
        found: int = _libc.syscall(_OPENAT2, root, os.fsencode(path or "."), how, len(how))
        if found >= 0:
            return found
        number = ctypes.get_errno()
        if number not in _NOT_HERE:
            raise OSError(number, os.strerror(number), path)
    return open_by_steps(root, path, flags, mode)


def open_by_steps(root: int, path: str, flags: int, mode: int = 0) -> int:
    """The same without openat2."""
    *above, last = path.split("/")
    folder = os.dup(root)
    try:
        for name in above:
            below = os.open(name, FOLDER, dir_fd=folder)
            os.close(folder)
            folder = below
        return os.open(last or ".", flags | os.O_CLOEXEC | os.O_NOFOLLOW, mode, dir_fd=folder)
    finally:
        os.close(folder)


def stays_beneath(path: str, target: str) -> bool:
    """Whether a link at *path* with this *target* leads to a place below the folder.

    ``..`` counts at its beginning only: after a name it may be the parent of what another link leads to.
    """
    if target.startswith("/") or "\0" in target:
        return False
    parts = [part for part in target.split("/") if part not in ("", ".")]
    up = 0
    while up < len(parts) and parts[up] == "..":
        up += 1
    return up <= path.count("/") and ".." not in parts[up:]
