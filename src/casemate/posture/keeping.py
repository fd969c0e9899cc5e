"""How this host is kept: who may touch our files, whether its clock is right, what its cgroup tree is tuned for."""

from __future__ import annotations

import ctypes
import os
import platform
import stat
from pathlib import Path

from casemate.config import Settings
from casemate.posture.check import Check, passed, read_fact, skipped, warned

PRIVATE = ("run", "sandboxes", "seal", "casemate.db")  # sockets, guests' disks, the key, names: nobody else's to read
OTHERS_READ, OTHERS_WRITE = stat.S_IROTH, stat.S_IWGRP | stat.S_IWOTH
STA_UNSYNC = 0x0040  # Source: adjtimex(2)
TIMEX_BYTES, STATUS_OFFSET = 256, 40  # struct timex is 208 bytes on x86-64; its status is the sixth word of 8
FAVORDYNMODS_SINCE = (6, 0)


def check_home(settings: Settings) -> Check:
    """Who owns the home, and who else may write or read in it."""
    name, home = "home-permissions", settings.home
    if not home.is_dir():
        return skipped(name, f"{home} is not there yet")
    wrong = [said for path in (home, *(home / part for part in PRIVATE)) if (said := _exposed(path, settings))]
    wrong += [f"{parent} is writable by everybody" for parent in home.resolve().parents if _swappable(parent)]
    if not wrong:
        return passed(name, f"{home} is its owner's only")
    return warned(
        name,
        "; ".join(wrong),
        "who can write there can exchange an image or reach every sandbox",
        f"sudo chmod go-w,o-rwx {home} {' '.join(str(home / p) for p in PRIVATE if (home / p).exists())}",
    )


def _exposed(path: Path, settings: Settings) -> str | None:
    try:
        found = path.stat()
    except OSError:  # not made yet, or not ours to look at, which is as private as can be
        return None
    if found.st_uid not in (0, os.geteuid(), settings.uid_base):
        return f"{path} belongs to uid {found.st_uid}"
    if found.st_mode & OTHERS_WRITE:
        return f"{path} is writable by others (mode {stat.S_IMODE(found.st_mode):04o})"
    if found.st_mode & OTHERS_READ and path.name in PRIVATE:
        return f"{path} is readable by others (mode {stat.S_IMODE(found.st_mode):04o})"
    return None


def _swappable(folder: Path) -> bool:
    """Whether anybody could put another home in the place of ours: writable by all, and not sticky as /tmp is."""
    mode = folder.stat().st_mode
    return bool(mode & stat.S_IWOTH) and not mode & stat.S_ISVTX


def check_time_sync(status: int | None = None) -> Check:
    """Guests take their clock from this host's. *status* is the kernel's clock status; None: ask it."""
    found = _clock_status() if status is None else status
    if found is None:
        return skipped("time-sync", "the kernel does not say")
    if not found & STA_UNSYNC:
        return passed("time-sync", "the kernel's clock is kept in step")
    return warned(
        "time-sync",
        "nothing keeps the kernel's clock in step",
        "guests get this clock: certificates and signed requests fail in them when it is wrong",
        "sudo timedatectl set-ntp true",
    )


def _clock_status() -> int | None:
    libc = ctypes.CDLL(None, use_errno=True)
    timex = ctypes.create_string_buffer(TIMEX_BYTES)  # modes 0: only look
    if libc.adjtimex(timex) < 0:
        return None
    return int.from_bytes(timex.raw[STATUS_OFFSET : STATUS_OFFSET + 4], "little")


def check_favordynmods(mounts: str | None = None, release: str | None = None) -> Check:
    """Whether processes enter and leave cgroups without waiting for the whole machine's readers."""
    name = "cgroup-favordynmods"
    version = tuple(int(part) for part in (release or platform.release()).split("-")[0].split(".")[:2])
    lines = (mounts if mounts is not None else read_fact("/proc/self/mounts") or "").splitlines()
    trees = [fields for fields in map(str.split, lines) if len(fields) > 3 and fields[2] == "cgroup2"]
    if not trees:
        return skipped(name, "there is no v2 tree")
    if version < FAVORDYNMODS_SINCE:
        return skipped(name, f"not in kernel {'.'.join(map(str, version))}")
    path, options = trees[0][1], trees[0][3].split(",")
    if "favordynmods" in options:
        return passed(name, f"on for {path}")
    return warned(
        name,
        f"off for {path}",
        "works; starting and stopping machines in cgroups of their own takes some milliseconds more",
        f"sudo mount -o remount,favordynmods {path}",
    )


def check_uid_range(settings: Settings, passwd: str | None = None, subuid: str | None = None) -> Check:
    """Whether the uids that machines run as are nobody else's. *passwd* and *subuid* are the files of /etc."""
    name, first, last = "uid-range", settings.uid_base, settings.uid_base + settings.uid_count
    if os.geteuid() != 0:
        return skipped(name, "machines run as this user")
    users = [
        line.split(":") for line in (passwd if passwd is not None else read_fact("/etc/passwd") or "").splitlines()
    ]
    taken = [f"user {fields[0]}" for fields in users if len(fields) > 2 and first <= _number(fields[2]) <= last]
    ranges = [
        line.split(":") for line in (subuid if subuid is not None else read_fact("/etc/subuid") or "").splitlines()
    ]
    for fields in ranges:
        if len(fields) == 3 and _number(fields[1]) <= last and _number(fields[1]) + _number(fields[2]) > first:
            taken.append(f"{fields[0]}'s range in /etc/subuid")
    if not taken:
        return passed(name, f"{first} to {last} are nobody else's")
    return warned(
        name,
        f"{', '.join(taken)} shares uids with machines ({first} to {last})",
        "what runs as such a uid can signal and trace a machine",
        "set CASEMATE_UID_BASE to a range that is free",
    )


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdecimal() else -1
