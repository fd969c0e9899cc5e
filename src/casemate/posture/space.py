"""Disk and memory: how much there is, and what happens to it."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import tempfile
from pathlib import Path

from casemate.posture.check import Check, failed, passed, read_fact, skipped, warned

FICLONE = 0x4004_9409  # Source: linux/fs.h
MIB = 2**20
DISK_LEAST_MIB, DISK_GOOD_MIB = 2048, 6144  # an image and its snapshot take 1.5 GiB, building one twice that
MEMORY_LEAST_MIB, MEMORY_GOOD_MIB = 768, 2048
REMARK = "each sandbox keeps the memory it writes; images are made in about 600 MiB"


def nearest_folder(path: Path) -> Path:
    """*path*, or the folder above it that is there."""
    while not path.is_dir():
        path = path.parent
    return path


def check_disk(home: Path) -> Check:
    folder = nearest_folder(home)
    free_mib = shutil.disk_usage(folder).free // MIB
    found = f"{free_mib} MiB free for {home}"
    hint = "an image and its snapshot take about 1.5 GiB, building one twice that"
    fix = "set CASEMATE_HOME to a folder on a larger disk"
    if free_mib < DISK_LEAST_MIB:
        return failed("disk", found, hint, fix)
    return passed("disk", found) if free_mib >= DISK_GOOD_MIB else warned("disk", found, hint, fix)


def check_memory(meminfo: str | None = None) -> Check:
    """*meminfo* is /proc/meminfo."""
    available_mib = meminfo_mib("MemAvailable", meminfo)
    found = f"{available_mib} MiB available of {meminfo_mib('MemTotal', meminfo)}"
    if available_mib < MEMORY_LEAST_MIB:
        return failed("memory", found, REMARK)
    return passed("memory", found) if available_mib >= MEMORY_GOOD_MIB else warned("memory", found, REMARK)


def meminfo_mib(name: str, meminfo: str | None = None) -> int:
    text = meminfo if meminfo is not None else read_fact("/proc/meminfo") or ""
    for line in text.splitlines():
        key, _, rest = line.partition(":")
        if key == name:
            return int(rest.split()[0]) // 1024
    return 0


def check_swap(meminfo: str | None = None) -> Check:
    total_mib = meminfo_mib("SwapTotal", meminfo)
    if not total_mib:
        return passed("swap", "none")
    return warned(
        "swap",
        f"{total_mib} MiB",
        "memory of a guest, with the secrets in it, may be written to this disk and stay there",
        "sudo swapoff -a",
    )


def check_reflink(home: Path) -> Check:
    """Really clones a file's blocks where the sandboxes' disks would be."""
    name, folder = "reflink", nearest_folder(home)
    try:
        with tempfile.TemporaryFile(dir=folder) as source, tempfile.TemporaryFile(dir=folder) as copy:
            source.write(b"\0" * 4096)
            source.flush()
            fcntl.ioctl(copy.fileno(), FICLONE, source.fileno())
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            return skipped(name, f"{folder}: {error.strerror}")
        if error.errno in (errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.EXDEV):
            return warned(
                name,
                f"not on the file system of {folder}",
                "a sandbox's disk is copied instead: sparse, so still some milliseconds; XFS and btrfs share blocks",
            )
        return failed(name, f"{folder}: {os.strerror(error.errno or 0)}", "nothing can be written there")
    return passed(name, f"on the file system of {folder}")
