"""Every stored file of a version hashed in full, whatever is remembered of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import anyio

from casemate import errors
from casemate.build.host import BuildHost
from casemate.build.shapes import Stored
from casemate.build.snapshot import Progress
from casemate.sandbox import Snapshot
from casemate.storage import VersionRow

PARTS = ("kernel", "initrd", "root")
Check = tuple[str, Callable[[], str | None]]
"""What is checked, and the check: why it is broken, or None."""


async def verified(
    host: BuildHost, version: VersionRow, snapshots: Iterable[Stored], progress: Progress
) -> dict[str, Any]:
    checks: list[Check] = [(part, partial(_artifact, host, version, part)) for part in PARTS]
    for stored in snapshots:
        checks += [(f"snapshot {stored.row.id} {name}", partial(_file, host, stored, name)) for name in FILES]
    files = []
    for number, (what, check) in enumerate(checks):
        progress("verify", what, number / len(checks))
        why = await anyio.to_thread.run_sync(check)
        files.append({"file": what, "ok": why is None, "why": why or ""})
    return {
        "name": version.name,
        "version": version.number,
        "ok": all(file["ok"] for file in files),
        "files": files,
    }


FILES = ("memory", "state", "disk")


def _artifact(host: BuildHost, version: VersionRow, part: str) -> str | None:
    try:
        host.workshop.store.verify(version.artifacts.get(part, ""))
    except (errors.ImageBroken, errors.NotFound) as error:
        return error.message
    return None


def _file(host: BuildHost, stored: Stored, name: str) -> str | None:
    try:
        snapshot = Snapshot.read(stored.folder, host.seal, tenant=stored.row.tenant)
        expected = snapshot.digests[name]
        with (stored.folder / name).open("rb") as file:
            found = snapshot.digest_of(name, file.fileno())
    except errors.SealBroken as error:
        return error.message
    except (errors.ImageBroken, KeyError, OSError) as error:
        return f"cannot be read: {error}"
    if found != expected:
        host.verified.forget(expected)  # the next create looks again and builds anew
        return f"has digest {found[:12]} where {expected[:12]} was sealed"
    return None
