"""``sandboxes/<id>/meta.json``: what is true about one sandbox.

Written by its supervisor at each edge (temporary name, fsync, rename); read by the daemon at
start, to tell what an earlier daemon left; deleted with the sandbox's folder.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from casemate.sandbox.spec import SandboxInfo

FORMAT = 1


def write_meta(folder: Path, info: SandboxInfo) -> None:
    """Replace the record of *info*; after it returns a crash of the host keeps it. Blocks for the disk."""
    temporary = folder / "meta.json.tmp"
    body = json.dumps({"format": FORMAT, "sandbox": info.to_json()}, sort_keys=True).encode()
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, body)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    temporary.rename(folder / "meta.json")


def read_meta(folder: Path) -> SandboxInfo | None:
    """None where no whole record of this format is: a folder not yet filled, or by a later version."""
    try:
        body = json.loads((folder / "meta.json").read_bytes())
        return SandboxInfo.from_json(body["sandbox"]) if body["format"] == FORMAT else None
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
