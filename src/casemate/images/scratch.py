"""The writable disk of a sandbox: a sparse ext4 image, made once per size and copied per clone.

No journal: the disk's state always belongs to a memory snapshot and is never mounted after a crash (a machine
that dies takes its disk along), so a journal would double every write and protect nothing. No metadata
checksums for the same reason; they cost CPU under emulation. Inode tables are declared zero
(assume_storage_prezeroed) instead of being zeroed lazily by the guest, which would fill in a sparse file.
"""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

from casemate.errors import HostFull
from casemate.images.tools import run

FICLONE = 0x40049409  # Source: linux/fs.h, _IOW(0x94, 9, int)
MKFS_TIMEOUT_S = 60.0
COPY_CHUNK_BYTES = 1 << 24
UUID = "5ca7c400-0000-4000-8000-000000000000"


def mkfs_argv(image: Path, disk_mib: int) -> list[str]:
    """The same size gives the same bytes: UUID, hash seed and (by E2FSPROGS_FAKE_TIME) time are fixed."""
    return [
        "mkfs.ext4", "-q", "-F", "-m", "0", "-L", "scratch", "-U", UUID,
        "-O", "^has_journal,^metadata_csum,^resize_inode,uninit_bg",
        "-E", f"root_owner=0:0,nodiscard,assume_storage_prezeroed=1,lazy_itable_init=1,hash_seed={UUID}",
        str(image), f"{disk_mib}M",
    ]  # fmt: skip


def make_scratch_disk(image: Path, disk_mib: int) -> None:
    """Write an empty scratch disk of *disk_mib* MiB to the new file *image*; it occupies well under 1 MiB.

    Raises ToolMissing, ToolFailed, HostFull.
    """
    with image.open("xb") as file:
        file.truncate(disk_mib << 20)
    run(mkfs_argv(image, disk_mib), timeout_s=MKFS_TIMEOUT_S, env={"E2FSPROGS_FAKE_TIME": "1"})


def copy_disk(source: Path, target: Path, *, mode: int = 0o600) -> None:
    """Copy a disk to the new file *target* as cheaply as the file system can: shared extents, else data only.

    Holes stay holes. A failure leaves no *target*. Raises HostFull; FileExistsError when *target* exists.
    """
    with source.open("rb") as origin:
        fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        try:
            if not _clone(origin.fileno(), fd):
                _copy_data(origin.fileno(), fd)
        except BaseException as error:
            target.unlink(missing_ok=True)
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise HostFull("no space left for a sandbox's disk", hint="free some disk space") from error
            raise
        finally:
            os.close(fd)


def _clone(origin: int, target: int) -> bool:
    try:
        fcntl.ioctl(target, FICLONE, origin)
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS):
            return False
        raise
    return True


def _copy_data(origin: int, target: int) -> None:
    size = os.fstat(origin).st_size
    os.ftruncate(target, size)
    offset = 0
    while offset < size:
        try:
            start = os.lseek(origin, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # only a hole up to the end
                return
            raise
        offset = os.lseek(origin, start, os.SEEK_HOLE)
        _copy_range(origin, target, start, offset)


def _copy_range(origin: int, target: int, start: int, end: int) -> None:
    while start < end:
        try:
            moved = os.copy_file_range(origin, target, min(end - start, COPY_CHUNK_BYTES), start, start)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
                raise
            moved = os.pwrite(target, os.pread(origin, min(end - start, COPY_CHUNK_BYTES), start), start)
        if moved == 0:  # the source shrank under us; what is missing would be zeros
            raise OSError(errno.EIO, "the disk shrank while it was copied")
        start += moved
