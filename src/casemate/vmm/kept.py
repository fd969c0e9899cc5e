"""The builds of VMMs that this home has: ``vmm/<sha256 of the binary>/``, each with what it needs to run.

Written by the drivers, whole under a temporary name, then renamed; kept for as long as anything stored was made with
one (``build/removal.py`` looks). Beside them each driver has an index whose ``sha256`` names the installed build.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

DIGEST = re.compile(r"[0-9a-f]{64}")
INDEXES = {"qemu": "current.json", "firecracker": "firecracker.json"}
MAX_BYTES = 65_536


def kept_builds(vmm: Path) -> list[str]:
    """Their digests, the installed ones among them. Blocks."""
    try:
        return sorted(path.name for path in vmm.iterdir() if DIGEST.fullmatch(path.name) and path.is_dir())
    except FileNotFoundError:
        return []


def installed_build(vmm: Path, name: str) -> str | None:
    """The digest of the build that new machines of the VMM *name* would run under, as its driver last found. Blocks."""
    digest = str(read_index(vmm / INDEXES[name]).get("sha256", ""))
    return digest if DIGEST.fullmatch(digest) else None


def installed_builds(vmm: Path) -> set[str]:
    """Of every VMM. Blocks."""
    return {digest for name in INDEXES if (digest := installed_build(vmm, name))}


def read_index(path: Path) -> dict[str, object]:
    """A small JSON object; an empty one where there is none, or something else."""
    try:
        with path.open("rb") as file:
            body = json.loads(file.read(MAX_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    return body if isinstance(body, dict) else {}
