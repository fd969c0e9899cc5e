"""The vmlinuz header with hostile input, and the order in which modules are loaded."""

from __future__ import annotations

import contextlib
import lzma
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.errors import ImageBroken
from casemate.images import kernel

ELF = b"\x7fELF" + bytes(range(256)) * 64


def vmlinuz(payload: bytes, *, setup_sects: int = 3, offset: int = 64, version: int = 0x20F) -> bytes:
    image = bytearray((setup_sects + 1) * 512 + offset) + payload
    image[0x1F1] = setup_sects
    image[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", image, 0x206, version)
    struct.pack_into("<II", image, 0x248, offset, len(payload))
    return bytes(image)


def packed(tool: list[str], content: bytes) -> bytes:
    if shutil.which(tool[0]) is None:
        pytest.skip(f"no {tool[0]} on this host")
    body = subprocess.run(tool, input=content, capture_output=True, check=True).stdout
    return body + struct.pack("<I", len(content))


@pytest.mark.parametrize("tool", [["zstd", "-c"], ["lz4", "-l", "-c"]])
def test_the_payload_is_unpacked(tool: list[str], tmp_path: Path) -> None:
    (tmp_path / "vmlinuz").write_bytes(vmlinuz(packed(tool, ELF)))
    kernel.unpack_vmlinux(tmp_path / "vmlinuz", tmp_path / "vmlinux")
    assert (tmp_path / "vmlinux").read_bytes() == ELF
    assert sorted(p.name for p in tmp_path.iterdir()) == ["vmlinux", "vmlinuz"]


@pytest.mark.parametrize(
    ("content", "why"),
    [(b"not an ELF file, but long enough to be something", "ELF"), (b"\x7fELF" * 4, None)],
)
def test_what_is_no_kernel_is_refused(content: bytes, why: str | None, tmp_path: Path) -> None:
    body = packed(["zstd", "-c"], content)
    if why is None:  # an ELF file whose size is not the one the header tells
        body = body[:-4] + struct.pack("<I", 12345)
    (tmp_path / "vmlinuz").write_bytes(vmlinuz(body))
    with pytest.raises(ImageBroken, match=why or "size"):
        kernel.unpack_vmlinux(tmp_path / "vmlinuz", tmp_path / "vmlinux")


def test_a_bomb_is_not_unpacked(tmp_path: Path) -> None:
    (tmp_path / "vmlinuz").write_bytes(vmlinuz(b"\x28\xb5\x2f\xfd" + b"\xff" * 8))
    with pytest.raises(ImageBroken, match="believable"):
        kernel.unpack_vmlinux(tmp_path / "vmlinuz", tmp_path / "vmlinux")


def test_an_unknown_compression_is_named(tmp_path: Path) -> None:
    (tmp_path / "vmlinuz").write_bytes(vmlinuz(b"\xfd7zXZ\0" + bytes(8)))
    with pytest.raises(ImageBroken, match="fd377a58"):
        kernel.unpack_vmlinux(tmp_path / "vmlinuz", tmp_path / "vmlinux")


@given(st.binary(max_size=2048))
def test_any_bytes_are_a_payload_or_refused(image: bytes) -> None:
    with contextlib.suppress(ImageBroken):
        assert len(kernel.payload_of(image)) <= len(image)


@given(st.integers(0, 255), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.integers(0, 0xFFFF))
def test_a_lying_header_reads_nothing_outside(sects: int, offset: int, length: int, version: int) -> None:
    image = bytearray(vmlinuz(b"x" * 4096, version=version))
    image[0x1F1] = sects
    struct.pack_into("<II", image, 0x248, offset, length)
    try:
        payload = kernel.payload_of(bytes(image))
    except ImageBroken:
        return
    start = ((sects or 4) + 1) * 512 + offset
    assert version >= 0x208
    assert payload == bytes(image)[start : start + length]
    assert len(payload) == length


DEP = """\
kernel/fs/erofs/erofs.ko.xz: kernel/lib/lz4.ko.xz kernel/lib/libcrc32c.ko.xz
kernel/lib/lz4.ko.xz: kernel/lib/libcrc32c.ko.xz
kernel/lib/libcrc32c.ko.xz:
kernel/drivers/char/virtio-rng.ko.xz:
"""
BUILTIN = "kernel/fs/ext4/ext4.ko\nkernel/drivers/char/virtio_console.ko\n"


def test_modules_come_after_what_they_need_and_once() -> None:
    order = kernel.load_order(DEP, BUILTIN, ["virtio_rng", "erofs", "ext4", "lz4"])
    assert [kernel.module_name(path) for path in order] == ["virtio_rng", "libcrc32c", "lz4", "erofs"]


def test_a_module_that_is_nowhere_is_named() -> None:
    with pytest.raises(ImageBroken, match="overlay"):
        kernel.load_order(DEP, BUILTIN, ["overlay"])


def test_a_module_is_unpacked(tmp_path: Path) -> None:
    (tmp_path / "a.ko.xz").write_bytes(lzma.compress(b"module"))
    (tmp_path / "b.ko").write_bytes(b"module")
    assert kernel.read_module(tmp_path / "a.ko.xz") == kernel.read_module(tmp_path / "b.ko") == b"module"
    (tmp_path / "c.ko.br").write_bytes(b"?")
    with pytest.raises(ImageBroken, match=r"c\.ko\.br"):
        kernel.read_module(tmp_path / "c.ko.br")
