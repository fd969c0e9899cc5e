"""The guest's file systems and devices, as a straight list. Runs once, at boot, before the snapshot.

The initramfs has mounted /, /proc, /sys, /dev and /run and put the agent disk to /run/casemate/agent.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct

from casemate.guest.handshake import STATE_FOLDER

NOSUID, NODEV, NOEXEC, BIND = 2, 4, 8, 4096
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1
_DEVICE_LINKS = (
    ("fd", "/proc/self/fd"), ("stdin", "/proc/self/fd/0"), ("stdout", "/proc/self/fd/1"), ("stderr", "/proc/self/fd/2"),
)  # fmt: skip
# Nobody listens on the loopback's port 53: a question is refused at once instead of waited for.
_RESOLV_CONF = "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n"


def mount(source: str, target: str, kind: str | None, flags: int = 0, options: str | None = None) -> None:
    """mount(2). Raises OSError with the target's name."""
    libc = ctypes.CDLL(None, use_errno=True)
    words = [text.encode() if text is not None else None for text in (source, target, kind)]
    if libc.mount(*words, ctypes.c_ulong(flags), options.encode() if options is not None else None) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), target)


def mount_all() -> None:
    """Everything a Linux program expects to find. Raises OSError."""
    os.makedirs("/dev/pts", exist_ok=True)
    mount("devpts", "/dev/pts", "devpts", NOSUID | NOEXEC, "gid=5,mode=620,ptmxmode=666")
    os.makedirs("/dev/shm", exist_ok=True)
    mount("shm", "/dev/shm", "tmpfs", NOSUID | NODEV, "mode=1777")
    os.makedirs("/tmp", exist_ok=True)
    mount("tmp", "/tmp", "tmpfs", NOSUID | NODEV, "mode=1777")
    for name, target in _DEVICE_LINKS:
        if not os.path.lexists(f"/dev/{name}"):
            os.symlink(target, f"/dev/{name}")
    _mount_cgroups()
    _place_identity()
    _raise_loopback()


def _mount_cgroups() -> None:
    """favordynmods: processes are moved between groups often here, and it makes that cheap."""
    for options in ("nsdelegate,favordynmods", "nsdelegate"):
        try:
            mount("cgroup2", "/sys/fs/cgroup", "cgroup2", NOSUID | NODEV | NOEXEC, options)
        except OSError:
            if "favordynmods" not in options:
                raise
        else:
            return


def _place_identity() -> None:
    """Small files on tmpfs over the places of this machine's identity: cheap to rewrite in a clone."""
    os.makedirs(STATE_FOLDER, exist_ok=True)
    for name, place, content in (
        ("machine-id", "/etc/machine-id", ""),
        ("hostname", "/etc/hostname", "localhost\n"),
        ("hosts", "/etc/hosts", "127.0.0.1 localhost\n::1 localhost\n"),
        ("resolv.conf", "/etc/resolv.conf", _RESOLV_CONF),
        ("boot_id", "/proc/sys/kernel/random/boot_id", ""),
    ):
        source = f"{STATE_FOLDER}/{name}"
        with open(source, "w") as file:
            file.write(content)
        if place.startswith("/etc/"):
            _make_plain(place)
        mount(source, place, None, BIND)


def _make_plain(path: str) -> None:
    """See to it that *path* is a file one can mount over: images come with dangling links there."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    if os.path.islink(path):
        os.unlink(path)
    if not os.path.exists(path):
        with open(path, "x"):
            pass


def _raise_loopback() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        request = struct.pack("16sH14x", b"lo", 0)
        flags = struct.unpack("16sH14x", fcntl.ioctl(sock, _SIOCGIFFLAGS, request))[1]
        fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags | _IFF_UP))
