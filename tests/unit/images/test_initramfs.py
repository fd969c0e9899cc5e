"""The initramfs for a kernel of paper: its script is sound, its modules are there in their order."""

from __future__ import annotations

import lzma
import subprocess
from pathlib import Path

import pytest

from casemate.errors import ImageBroken
from casemate.images import initramfs
from casemate.images.agentdisk import AGENT_ARGV
from casemate.images.kernel import BOOT_MODULES, VSOCK_MODULES, UnpackedKernel

BUSYBOX = b"\x7fELF busybox"


@pytest.fixture
def kernel(tmp_path: Path) -> UnpackedKernel:
    modules = tmp_path / "lib/modules/6.12"
    modules.mkdir(parents=True)
    dep = ""
    needs = {"erofs": " crc.ko", VSOCK_MODULES[0]: " vsock.ko crc.ko"}
    for name in (*BOOT_MODULES, *VSOCK_MODULES):
        (modules / f"{name}.ko.xz").write_bytes(lzma.compress(f"module {name}".encode()))
        dep += f"{name}.ko.xz:{needs.get(name, '')}\n"
    for name in ("crc", "vsock"):
        (modules / f"{name}.ko").write_bytes(f"module {name}".encode())
    (modules / "modules.dep").write_text(dep + "crc.ko:\nvsock.ko:\n")
    (modules / "modules.builtin").write_text("kernel/fs/ext4/ext4.ko\n")
    return UnpackedKernel("6.12", tmp_path / "vmlinux", modules)


def test_the_same_kernel_gives_the_same_bytes(kernel: UnpackedKernel) -> None:
    built = initramfs.build(kernel, BUSYBOX)
    assert built == initramfs.build(kernel, BUSYBOX)
    assert b"module crc" in built
    assert b"virtio_mmio\nvirtio_blk\nvirtio_rng\ncrc\nerofs\noverlay\n" in built
    assert b"vsock\nvmw_vsock_virtio_transport\n" in built
    assert b"overlay\nvsock" not in built
    assert built.count(b"module crc") == 1


@pytest.mark.parametrize("length", [512, 1024, 3584, 4096, 5120])
def test_room_is_left_behind_it_for_the_firmwares_tables(length: int) -> None:
    built = initramfs._with_room(b"x" * length)
    assert built.rstrip(b"\0") == b"x" * length
    assert -len(built) % 4096 == 3584


def test_the_script_is_sound_shell_and_ends_in_the_agent() -> None:
    script = initramfs.init_script()
    subprocess.run(["sh", "-n"], input=script.encode(), check=True)
    assert " ".join(AGENT_ARGV) in script
    assert script.startswith("#!/bin/busybox sh\n")
    assert "{" not in script.replace("die() {", "").replace("load() {", ""), "a placeholder was left"


@pytest.mark.parametrize(
    ("devices", "loaded"),
    [(["0x0002", "0x0013", "0x0004"], "order\nvsock\n"), (["0x0002", "0x0003"], "order\n"), ([], "order\n")],
)
def test_a_vsock_gets_its_drivers_where_there_is_one(tmp_path: Path, devices: list[str], loaded: str) -> None:
    script = initramfs.init_script()
    part = script[script.index("load order\n") : script.index("for disk in")]
    for number, kind in enumerate(devices):
        (tmp_path / f"virtio{number}").mkdir()
        (tmp_path / f"virtio{number}/device").write_text(f"{kind}\n")
    part = f"load() {{ echo $1; }}\n{part.replace('/sys/bus/virtio/devices', str(tmp_path))}"
    assert subprocess.run(["sh"], input=part.encode(), capture_output=True, check=True).stdout.decode() == loaded


def test_a_busybox_that_is_none_is_refused(kernel: UnpackedKernel) -> None:
    with pytest.raises(ImageBroken, match="busybox"):
        initramfs.build(kernel, b"#!/bin/sh")
