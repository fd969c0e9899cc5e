"""The initramfs: load the drivers, put the disks together, hand over to the agent as PID 1.

The drivers of a vsock (virtio device 19) are loaded where the machine has one.

Three disks in the order of the machine's drives: vda root and vdb agent (EROFS, read-only), vdc scratch
(ext4). The guest's root is an overlay of the scratch disk over the image; the agent disk is bound into it.
"""

from __future__ import annotations

from pathlib import Path

from casemate.errors import ImageBroken
from casemate.images import cpio
from casemate.images.agentdisk import AGENT_ARGV, AGENT_MOUNT
from casemate.images.kernel import BOOT_MODULES, VSOCK_MODULES, UnpackedKernel, load_order, module_name, read_module

PAGE_BYTES = 4096
ROOM_BYTES = 3584

# The scratch disk holds nothing but the overlay's upper layer. It needs no recovery: it lives and dies with
# the memory snapshot that it belongs to. noinit_itable: its inode tables are zero already (scratch.py).
INIT = """#!/bin/busybox sh
# Runs as PID 1 out of the initramfs. Every step that fails says so and ends the machine (panic=-1 reboots,
# the VMM is started so that a reboot ends it).
B=/bin/busybox
die() {{ echo "casemate-init: $*"; $B sync; $B reboot -f; }}
$B mount -t devtmpfs -o nosuid,noexec dev /dev || die "mount /dev"
$B mount -t proc -o nosuid,nodev,noexec proc /proc || die "mount /proc"
$B mount -t sysfs -o nosuid,nodev,noexec sys /sys || die "mount /sys"
load() {{
  while read -r module; do
    $B insmod /modules/$module.ko || die "load $module"
  done < /modules/$1
}}
load order
for kind in /sys/bus/virtio/devices/*/device; do
  read -r number < $kind
  [ "$number" != 0x0013 ] || load vsock
done
for disk in vda vdb vdc; do
  tries=0
  while [ ! -b /dev/$disk ]; do
    tries=$((tries + 1))
    [ $tries -le 500 ] || die "no disk /dev/$disk after 5 s"
    $B usleep 10000
  done
done
$B mount -t erofs -o ro,nodev /dev/vda /image || die "mount the root disk"
$B mount -t erofs -o ro,nodev /dev/vdb /agent || die "mount the agent disk"
$B mount -t ext4 -o rw,nodev,noatime,noinit_itable /dev/vdc /scratch || die "mount the scratch disk"
$B mkdir -p /scratch/upper /scratch/work || die "write to the scratch disk"
$B mount -t overlay -o lowerdir=/image,upperdir=/scratch/upper,workdir=/scratch/work overlay /root \\
  || die "mount the overlay"
for place in dev proc sys run tmp; do
  [ -d /root/$place ] || $B mkdir -p /root/$place || die "make /$place"
done
$B mount -t tmpfs -o mode=755,nosuid,nodev run /root/run || die "mount /run"
$B mkdir -p /root{mount} || die "make {mount}"
$B mount --move /agent /root{mount} || die "move the agent disk"
for place in dev proc sys; do
  $B mount --move /$place /root/$place || die "move /$place"
done
exec $B env -i HOME=/root LANG=C.UTF-8 TERM=linux \\
  PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \\
  $B switch_root -c /dev/console /root {argv}
die "start the agent"
"""


def init_script() -> str:
    return INIT.format(mount=AGENT_MOUNT, argv=" ".join(AGENT_ARGV))


def build(kernel: UnpackedKernel, busybox: bytes) -> bytes:
    """The initramfs for *kernel*: the same kernel and busybox give the same bytes.

    Not compressed: it is small, and under emulation unpacking costs more than reading.
    Raises ImageBroken when the kernel lacks a module that a guest needs.
    """
    dep = (kernel.modules / "modules.dep").read_text()
    builtin = (kernel.modules / "modules.builtin").read_text()
    boot, vsock = load_order(dep, builtin, BOOT_MODULES), load_order(dep, builtin, VSOCK_MODULES)
    vsock = [path for path in vsock if path not in boot]
    if not busybox.startswith(b"\x7fELF"):
        raise ImageBroken("the busybox package has no program in it")
    entries = [cpio.folder(place) for place in ("dev", "proc", "sys", "image", "agent", "scratch", "root")]
    entries += [
        cpio.character_device("dev/console", 5, 1),
        cpio.character_device("dev/null", 1, 3, 0o666),
        cpio.file("bin/busybox", busybox, 0o755),
        cpio.file("init", init_script().encode(), 0o755),
    ]
    entries += [
        cpio.file(f"modules/{module_name(path)}.ko", read_module(kernel.modules / path)) for path in (*boot, *vsock)
    ]
    for name, paths in (("order", boot), ("vsock", vsock)):
        entries.append(cpio.file(f"modules/{name}", "".join(f"{module_name(path)}\n" for path in paths).encode()))
    return _with_room(cpio.archive(entries))


def _with_room(archive: bytes) -> bytes:
    """Zeros after it, which the kernel skips, up to ROOM_BYTES short of a page's end.

    QEMU puts the initramfs at the very end of a microvm's memory, from a page's beginning on. There its firmware has
    the ACPI tables, 1088 bytes, which a last page that is nearly full overwrites: the kernel hangs. Seen with 10.0.2.
    """
    return archive + bytes((PAGE_BYTES - ROOM_BYTES - len(archive)) % PAGE_BYTES)


def write(kernel: UnpackedKernel, busybox: Path, into: Path) -> None:
    into.write_bytes(build(kernel, busybox.read_bytes()))
