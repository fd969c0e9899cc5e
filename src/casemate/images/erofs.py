"""Read-only disks: a folder in, an EROFS file system out.

lz4hc: the guest unpacks pages under emulation, where lz4 is the cheapest that still halves the image.
"""

from __future__ import annotations

from pathlib import Path

from casemate.images.tools import run

COMPRESSION = "lz4hc,9"
BUILD_TIMEOUT_S = 900.0
NO_UUID = "00000000-0000-0000-0000-000000000000"


def frozen_argv(tree: Path | str, image: Path | str) -> list[str]:
    """Everything owned by root, all times 0, no extended attributes: the content alone makes the bytes."""
    return [
        "mkfs.erofs", f"-z{COMPRESSION}", "-T0", f"-U{NO_UUID}", "-x-1", "--all-root", "--quiet",
        str(image), str(tree),
    ]  # fmt: skip


def freeze(tree: Path, image: Path) -> None:
    """Write *tree* as the disk *image*. Raises ToolMissing, ToolFailed, HostFull."""
    run(frozen_argv(tree, image), timeout_s=BUILD_TIMEOUT_S)
