"""``sandboxes/<id>/meta.json``: what is true about one sandbox.

Written by its supervisor at each edge (temporary name, fsync, rename); read by the daemon at
start, to tell what an earlier daemon left; deleted with the sandbox's folder.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from casemate.sandbox.spec import SandboxInfo

FORMAT = 1


def write_meta(folder: Path, info: SandboxInfo, *, durable: bool = True) -> None:
    """Replace the record of *info*. *durable*: after it returns a crash of the host keeps it; it blocks for the disk.

    Without: such a crash leaves this record or the one before it, never a part.
    """
    temporary = folder / "meta.json.tmp"
    record = {"format": FORMAT, "boot_id": boot_id(), "sandbox": info.to_json()}
    body = json.dumps(record, sort_keys=True).encode()
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:
        file.write(body)  # all of it, or ENOSPC
        file.flush()
        if durable:
            os.fsync(descriptor)
    temporary.rename(folder / "meta.json")


@dataclass(frozen=True, slots=True)
class Record:
    """*boot_id*: which boot of the host wrote it; None in records of earlier versions."""

    sandbox: SandboxInfo
    boot_id: str | None


def read_meta(folder: Path) -> Record | None:
    """None where no whole record of this format is: a folder not yet filled, or by a later version."""
    try:
        body = json.loads((folder / "meta.json").read_bytes())
        if body["format"] != FORMAT:
            return None
        return Record(SandboxInfo.from_json(body["sandbox"]), body.get("boot_id"))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


@cache
def boot_id() -> str:
    """Of the host; another one after each boot. Source: random(4)"""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
