"""The initramfs for a kernel of paper: its script is sound, its modules are there in their order."""

from __future__ import annotations

import lzma
import subprocess
from pathlib import Path

import pytest

from casemate.errors import ImageBroken
from casemate.images import initramfs
from casemate.images.agentdisk import AGENT_ARGV
from casemate.images.kernel import BOOT_MODULES, UnpackedKernel

BUSYBOX = b"\x7fELF busybox"


@pytest.fixture
def kernel(tmp_path: Path) -> UnpackedKernel:
    modules = tmp_path / "lib/modules/6.12"
    modules.mkdir(parents=True)
    dep = ""
    for name in BOOT_MODULES:
        (modules / f"{name}.ko.xz").write_bytes(lzma.compress(f"module {name}".encode()))
        dep += f"{name}.ko.xz:" + (" crc.ko" if name == "erofs" else "") + "\n"
    (modules / "crc.ko").write_bytes(b"module crc")
    (modules / "modules.dep").write_text(dep + "crc.ko:\n")
    (modules / "modules.builtin").write_text("kernel/fs/ext4/ext4.ko\n")
    return UnpackedKernel("6.12", tmp_path / "vmlinux", modules)


def test_the_same_kernel_gives_the_same_bytes(kernel: UnpackedKernel) -> None:
    built = initramfs.build(kernel, BUSYBOX)
    assert built == initramfs.build(kernel, BUSYBOX)
    assert b"module crc" in built
    assert b"virtio_mmio\nvirtio_blk\nvirtio_rng\ncrc\nerofs\noverlay\n" in built


def test_the_script_is_sound_shell_and_ends_in_the_agent() -> None:
    script = initramfs.init_script()
    subprocess.run(["sh", "-n"], input=script.encode(), check=True)
    assert " ".join(AGENT_ARGV) in script
    assert script.startswith("#!/bin/busybox sh\n")
    assert "{" not in script.replace("die() {", ""), "a placeholder was left"


def test_a_busybox_that_is_none_is_refused(kernel: UnpackedKernel) -> None:
    with pytest.raises(ImageBroken, match="busybox"):
        initramfs.build(kernel, b"#!/bin/sh")
