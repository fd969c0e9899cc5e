"""How the daemon gives its privilege up: another uid, and a view of the file system it can live in.

What parses HTTP and guest frames is not root. As root this process first enters a mount namespace of its own,
where folders closed to other uids (say /root, with the Python and the checkout below it) are covered by an empty
one that shows just what is needed; then it starts the launcher; then it changes its uid for good.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterable
from pathlib import Path

import casemate
from casemate.config import Settings
from casemate.errors import HostError

CLONE_NEWNS = 0x00020000  # Source: linux/sched.h
MS_BIND, MS_REC, MS_PRIVATE, MS_NOSUID, MS_NODEV = 4096, 16384, 1 << 18, 2, 4  # Source: linux/mount.h
PR_SET_NO_NEW_PRIVS = 38
_libc = ctypes.CDLL(None, use_errno=True)


def give_home(settings: Settings) -> None:
    """As root: the home belongs to the daemon's uid. Nothing happens for anyone else, or when it does already."""
    uid = settings.uid_base
    if os.geteuid() != 0:
        return
    for folder, folders, files in os.walk(settings.home):
        for path in (folder, *(os.path.join(folder, name) for name in (*folders, *files))):
            if os.lstat(path).st_uid != uid:
                os.chown(path, uid, uid, follow_symlinks=False)


def enter_view(settings: Settings) -> None:
    """As root: this process and the launcher after it see the file system as the daemon's uid may. Raises HostError."""
    if os.geteuid() != 0:
        return
    try:
        if not _is_open(here := Path(casemate.__file__).resolve().parent, settings.uid_base):
            raise HostError(f"{here} is closed to the daemon's uid", hint=f"run: chmod -R go+rX {here}")
        _enter_view(settings.uid_base, _needed(settings))
    except OSError as error:
        raise HostError(f"the daemon cannot get a view of its own: {error}") from error


def drop_privilege(settings: Settings) -> None:
    """Become the daemon's uid for good, as root; as anyone else there is nothing to drop. Raises HostError."""
    if os.geteuid() == 0:
        try:
            os.setgroups([])
            os.setresgid(*3 * (settings.uid_base,))
            os.setresuid(*3 * (settings.uid_base,))
        except OSError as error:
            raise HostError(f"the daemon cannot drop its privilege: {error}") from error
        os.environ["HOME"] = str(settings.home)
    if _libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise HostError("the kernel has no no_new_privs")


def _needed(settings: Settings) -> list[Path]:
    here = Path(casemate.__file__).resolve().parent
    pythons = {Path(p).resolve() for p in (sys.prefix, sys.base_prefix, *filter(None, sys.path)) if Path(p).exists()}
    # A closed folder would be no use, and would hide the open ones below it.
    return sorted(p for p in {settings.home.resolve(), here, *pythons} if _is_open(p, settings.uid_base))


def _enter_view(uid: int, needed: Iterable[Path]) -> None:
    """Cover each closed folder above a needed path with an open, empty one, and bind what is needed back in."""
    if _libc.unshare(CLONE_NEWNS) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    _mount(None, "/", None, MS_REC | MS_PRIVATE)
    closed: dict[Path, list[tuple[Path, int]]] = {}
    for path in needed:
        if (cover := _first_closed(path, uid)) is not None:
            kept = closed.setdefault(cover, [])
            if not any(path.is_relative_to(other) for other, _ in kept):
                kept.append((path, os.open(path, os.O_PATH | os.O_CLOEXEC)))
    for cover, kept in closed.items():
        _mount("tmpfs", str(cover), "tmpfs", MS_NOSUID | MS_NODEV, "mode=0755,size=1m")
        for path, descriptor in kept:
            path.mkdir(parents=True, exist_ok=True)
            _mount(f"/proc/self/fd/{descriptor}", str(path), None, MS_BIND | MS_REC)
            os.close(descriptor)
    os.chdir("/")


def _first_closed(path: Path, uid: int) -> Path | None:
    """The topmost folder above *path* that *uid* may not pass through."""
    return next((parent for parent in reversed(path.parents) if not _is_open(parent, uid)), None)


def _is_open(path: Path, uid: int) -> bool:
    """Whether *uid* may pass through the folder *path*, or read the file."""
    stat = path.stat()
    wanted = 0o001 if path.is_dir() else 0o004
    return bool(stat.st_mode & wanted or (stat.st_uid == uid and stat.st_mode & wanted << 6))


def _mount(source: str | None, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    texts = [t.encode() if t is not None else None for t in (source, target, kind)]
    if _libc.mount(*texts, ctypes.c_ulong(flags), data.encode() if data else None) != 0:
        raise OSError(ctypes.get_errno(), f"mount on {target}")
