"""The guest's kernel: the distribution's signed cloud kernel, unpacked, with the modules a guest needs.

`vmlinux` is the payload of Debian's `vmlinuz`; a machine boots it directly (PVH entry), which is faster than
having the guest unpack it under emulation.
"""

from __future__ import annotations

import lzma
import struct
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from casemate.errors import HostError, ImageBroken
from casemate.images.packages import Apt, Package, extract
from casemate.images.tools import Progress, no_progress, run

# In order of preference; the first that the host's archives have wins. The field was measured with 6.12
# (virtio_console and ext4 built in). Debian 12 has it in -security under its own name, and in -backports.
CHOICES = ("linux-image-6.12-cloud-amd64", "linux-image-cloud-amd64")
MIN_PREFERRED = (6, 12)

BOOT_MODULES = ("virtio_mmio", "virtio_blk", "virtio_rng", "erofs", "overlay")
"""What /init loads, with their dependencies; what is built into this kernel is left out."""
VSOCK_MODULES = ("vmw_vsock_virtio_transport",)
"""What it loads besides where there is a vsock."""

UNPACK_TIMEOUT_S = 60.0
MAX_VMLINUX_BYTES = 256 << 20
_ZSTD = b"\x28\xb5\x2f\xfd"
_LZ4_LEGACY = b"\x02\x21\x4c\x18"
_ELF = b"\x7fELF"


@dataclass(frozen=True, slots=True)
class UnpackedKernel:
    """A kernel below a folder of its own: the ELF image and the tree of its modules."""

    release: str
    vmlinux: Path
    modules: Path


def choose(apt: Apt) -> Package:
    """The kernel package to use: 6.12 where an archive of the host has it, else the release's own.

    Raises HostError when the host's archives have no cloud kernel at all.
    """
    for meta in CHOICES:
        versions = apt.versions(meta)
        preferred = [version for version in versions if _series(version) >= MIN_PREFERRED]
        for version in preferred or versions:
            image = next((d for d in apt.depends(meta, version) if d.startswith("linux-image-")), None)
            if image is not None:
                return apt.resolve([image])[0]
    raise HostError(
        "the host's package archives have no cloud kernel",
        hint="run `apt-get update`; Casemate takes linux-image-cloud-amd64 from a Debian archive",
    )


def _series(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("-")[0].split(".")[:2] if part.isdigit())


def payload_of(image: bytes) -> bytes:
    """The compressed kernel inside a vmlinuz.

    Raises ImageBroken when the boot header is not one or points outside of the file.
    Source: Linux Documentation/arch/x86/boot.rst (setup_sects 0x1f1, magic 0x202, payload_offset 0x248)
    """
    if len(image) < 0x250 or image[0x202:0x206] != b"HdrS":
        raise ImageBroken("the kernel package's vmlinuz has no Linux boot header")
    version = struct.unpack_from("<H", image, 0x206)[0]
    if version < 0x208:
        raise ImageBroken(f"the boot protocol {version:#x} of this vmlinuz does not tell where its payload is")
    setup_sects = image[0x1F1] or 4
    offset, length = struct.unpack_from("<II", image, 0x248)
    start = (setup_sects + 1) * 512 + offset
    if length < 4 or start + length > len(image):
        raise ImageBroken("the payload of this vmlinuz lies outside of the file")
    return image[start : start + length]


def unpack_vmlinux(vmlinuz: Path, into: Path) -> None:
    """Write the ELF kernel inside *vmlinuz* to *into*. Raises ImageBroken, ToolMissing, ToolFailed."""
    payload = payload_of(vmlinuz.read_bytes())
    # The build appends the unpacked size (4 bytes), which the tools would take for garbage.
    body, unpacked_bytes = payload[:-4], struct.unpack("<I", payload[-4:])[0]
    if unpacked_bytes > MAX_VMLINUX_BYTES:
        raise ImageBroken(f"a kernel of {unpacked_bytes} bytes is not believable")
    argv = _unpacker(body)
    with tempfile.NamedTemporaryFile(dir=into.parent, prefix="payload-") as packed:
        packed.write(body)
        packed.flush()
        run(
            [*argv, packed.name, "-o", str(into)] if argv[0] == "zstd" else [*argv, packed.name, str(into)],
            timeout_s=UNPACK_TIMEOUT_S,
        )
    with into.open("rb") as kernel:
        if kernel.read(4) != _ELF or into.stat().st_size != unpacked_bytes:
            raise ImageBroken("the payload of this vmlinuz does not unpack to an ELF kernel of the size it tells")


def _unpacker(body: bytes) -> list[str]:
    if body.startswith(_ZSTD):
        return ["zstd", "-q", "-d", "-f"]
    if body.startswith(_LZ4_LEGACY):
        return ["lz4", "-q", "-d", "-f"]
    raise ImageBroken(f"unknown compression of the kernel (it starts with {body[:4].hex()})")


def unpack(package: Path, into: Path, progress: Progress = no_progress) -> UnpackedKernel:
    """Unpack a kernel package below *into*: `vmlinux` and the module tree with its dependency lists.

    Raises ImageBroken when the package is not a kernel's.
    """
    progress("kernel", "unpacking the kernel", None)
    tree = into / "tree"
    extract([package], tree)
    images = sorted((tree / "boot").glob("vmlinuz-*"))
    if len(images) != 1:
        raise ImageBroken("the kernel package has no vmlinuz")
    release = images[0].name.removeprefix("vmlinuz-")
    modules = tree / "lib/modules" / release
    if not modules.is_dir():
        modules = tree / "usr/lib/modules" / release
    unpack_vmlinux(images[0], into / "vmlinux")
    run(["depmod", "-b", str(modules.parents[2]), release], timeout_s=UNPACK_TIMEOUT_S)
    return UnpackedKernel(release, into / "vmlinux", modules)


def module_name(path: str) -> str:
    """``kernel/drivers/block/virtio-rng.ko.xz`` → ``virtio_rng``, as the kernel calls it."""
    return path.rsplit("/", 1)[-1].split(".ko")[0].replace("-", "_")


def load_order(modules_dep: str, builtin: str, wanted: Sequence[str]) -> list[str]:
    """Paths (relative to the module tree) to load *wanted*, each after what it needs.

    Raises ImageBroken when a wanted module is neither there nor built in.
    Source: modules.dep(5): the dependencies of a line are in reverse order of loading.
    """
    needs: dict[str, list[str]] = {}
    for line in modules_dep.splitlines():
        path, _, rest = line.partition(":")
        needs[path] = rest.split()
    by_name = {module_name(path): path for path in needs}
    built_in = {module_name(path) for path in builtin.split()}
    order: list[str] = []
    for name in wanted:
        if name in by_name:
            path = by_name[name]
            order += [p for p in (*reversed(needs[path]), path) if p not in order]
        elif name not in built_in:
            raise ImageBroken(f"this kernel has no module {name}", hint="use a cloud kernel of Debian 12 or newer")
    return order


def read_module(path: Path) -> bytes:
    """The module itself: packages carry it compressed, and the guest should not have to unpack it."""
    raw = path.read_bytes()
    if path.suffix == ".xz":
        return lzma.decompress(raw)
    if path.suffix == ".ko":
        return raw
    if path.suffix == ".zst":
        with tempfile.TemporaryDirectory() as folder:
            plain = Path(folder) / "module"
            run(["zstd", "-q", "-d", str(path), "-o", str(plain)], timeout_s=UNPACK_TIMEOUT_S)
            return plain.read_bytes()
    raise ImageBroken(f"unknown compression of the module {path.name}")
