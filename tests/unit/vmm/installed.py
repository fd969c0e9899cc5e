"""A build of Firecracker as an install leaves it, of no program at all."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path


def put_build(vmm: Path, version: str, *, installed: bool = True) -> str:
    """Its digest."""
    programs = {name: f"{name} {version}".encode() for name in ("firecracker", "jailer")}
    sha256, jailer_sha256 = (hashlib.sha256(data).hexdigest() for data in programs.values())
    folder = vmm / sha256
    folder.mkdir(parents=True)
    for name, data in programs.items():
        (folder / name).write_bytes(data)
    said = {"format": 1, "vmm": "firecracker", "version": version, "sha256": sha256, "jailer_sha256": jailer_sha256}
    (folder / "build.json").write_text(json.dumps(said))
    if installed:
        (vmm / "firecracker.json").write_text(json.dumps({"sha256": sha256}))
    return sha256
