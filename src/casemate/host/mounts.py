"""A VMM's files, laid out by root in a mount namespace of their own, from descriptors alone.

For bubblewrap, which then runs as the VMM's uid and resolves a bind's source to a path: the folders above our files
are closed to that uid. For Firecracker's jailer, as the root that the VMM will have.
The mounts are cloned first: the kernel refuses to bind from the namespace that was left. All of it is gone with the
last process in it, so that there is nothing to clean up.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import stat
from collections.abc import Callable, Collection
from pathlib import Path

from casemate.host.jail import Jail
from casemate.host.jailer import BINARY, Jailer

CLONE_NEWNS = 0x00020000  # Source: linux/sched.h
MS_NOSUID, MS_NODEV, MS_REC, MS_PRIVATE = 2, 4, 16384, 1 << 18  # Source: linux/mount.h
OPEN_TREE, MOVE_MOUNT, MOUNT_SETATTR = 428, 429, 442  # the numbers on every architecture. Source: asm-generic/unistd.h
OPEN_TREE_CLONE, AT_EMPTY_PATH, MOVE_MOUNT_F_EMPTY_PATH = 1, 0x1000, 4  # Source: linux/mount.h, linux/fcntl.h
ATTR_RDONLY, ATTR_NOSUID, ATTR_NODEV, ATTR_NOEXEC = 1, 2, 4, 8  # Source: linux/mount.h
COUNTER = "/tmp"  # noqa: S108 - where they are laid out, in a mount namespace of its own
COUNTER_BYTES = 65_536
JAILS_OWN_BYTES = 1 << 20  # of a jailer's tmpfs, beside the copy of the VMM's binary
JAILS_INODES = 128
_libc = ctypes.CDLL(None, use_errno=True)


def lay_out(jail: Jail, uid: int) -> Callable[[int | str], str]:
    """Put the files where the VMM's uid can name them; gives what names them."""
    clones = _enter({bind.descriptor for bind in jail.binds})
    device_flag = 0 if jail.devices else MS_NODEV
    _mount("tmpfs", COUNTER, "tmpfs", MS_NOSUID | device_flag, f"mode=0755,size={COUNTER_BYTES}")
    for descriptor, clone in clones.items():
        _move(clone, Path(COUNTER, str(descriptor)))
    for device in jail.devices:
        place = f"{COUNTER}/{Path(device).name}"
        os.mknod(place, stat.S_IFCHR | 0o600, os.stat(device).st_rdev)
        os.chown(place, uid, uid)
    return lambda what: f"{COUNTER}/{Path(str(what)).name}"


def lay_out_chroot(jail: Jailer) -> str:
    """Make the tmpfs in which the jailer works, with all that the VMM will see; gives where.

    It may hold devices, for the jailer makes some. What is not to be written is mounted read-only by us: no bubblewrap
    does it here. Raises OSError, ValueError.
    """
    how = fcntl.fcntl(jail.executable, fcntl.F_GETFL)
    if how & os.O_PATH or how & os.O_ACCMODE not in (os.O_RDONLY, os.O_RDWR):
        raise ValueError("the VMM's binary has to be open for reading: the jailer copies it as root")
    clones = _enter({jail.executable, *(bind.descriptor for bind in jail.binds)})
    size = os.fstat(jail.executable).st_size + JAILS_OWN_BYTES
    _mount("tmpfs", COUNTER, "tmpfs", MS_NOSUID, f"mode=0755,size={size},nr_inodes={JAILS_INODES}")
    _set_attributes(clones[jail.executable], ATTR_RDONLY | ATTR_NOSUID | ATTR_NODEV)
    _move(clones[jail.executable], Path(COUNTER, "bin", BINARY))
    for bind in jail.binds:
        _set_attributes(
            clones[bind.descriptor], ATTR_NOSUID | ATTR_NODEV | ATTR_NOEXEC | (0 if bind.writable else ATTR_RDONLY)
        )
        _move(clones[bind.descriptor], Path(COUNTER, jail.root, bind.path.lstrip("/")))
    return COUNTER


def _enter(descriptors: Collection[int]) -> dict[int, int]:
    """A mount namespace of our own; and mounts, not in the tree yet, of the files behind *descriptors*."""
    clones = {descriptor: _clone_mount(descriptor) for descriptor in descriptors}
    if _libc.unshare(CLONE_NEWNS) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    _mount(None, "/", None, MS_REC | MS_PRIVATE)
    return clones


def _clone_mount(descriptor: int) -> int:
    """Source: open_tree(2)"""
    clone = _libc.syscall(OPEN_TREE, descriptor, b"", OPEN_TREE_CLONE | AT_EMPTY_PATH | os.O_CLOEXEC)
    if clone < 0:
        raise OSError(ctypes.get_errno(), f"open_tree of descriptor {descriptor}")
    return int(clone)


def _move(clone: int, place: Path) -> None:
    """Mount it at *place*, which is made."""
    place.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    kind = os.fstat(clone).st_mode
    if stat.S_ISDIR(kind):
        place.mkdir(mode=0o755)
    elif stat.S_ISREG(kind):
        os.close(os.open(place, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o444))
    else:
        raise ValueError(f"what is to be at {place.name} is neither file nor folder")
    if _libc.syscall(MOVE_MOUNT, clone, b"", -1, os.fsencode(place), MOVE_MOUNT_F_EMPTY_PATH) != 0:
        raise OSError(ctypes.get_errno(), f"move_mount to {place}")
    os.close(clone)


class _MountAttributes(ctypes.Structure):
    """struct mount_attr. Source: linux/mount.h"""

    _fields_ = tuple((name, ctypes.c_uint64) for name in ("attr_set", "attr_clr", "propagation", "userns_fd"))


def _set_attributes(clone: int, wanted: int) -> None:
    """Source: mount_setattr(2)"""
    attributes = _MountAttributes(attr_set=wanted)
    size = ctypes.sizeof(attributes)
    if _libc.syscall(MOUNT_SETATTR, clone, b"", AT_EMPTY_PATH, ctypes.byref(attributes), ctypes.c_size_t(size)) != 0:
        raise OSError(ctypes.get_errno(), "mount_setattr")


def _mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    words = [word.encode() if word is not None else None for word in (source, target, kind)]
    if _libc.mount(*words, ctypes.c_ulong(flags), options.encode() if options else None) != 0:
        raise OSError(ctypes.get_errno(), f"mount on {target}")
