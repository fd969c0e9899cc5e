"""What is stored of machines, against the VMM that is installed: suspended sandboxes, and snapshots being rebuilt.

A daemon compares everything (CPU, clock, disks) and writes it to ``run/upkeep.json``; here, without one, the builds
of the VMM are compared, which tells what an upgrade has changed before the next daemon starts.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from casemate.config import Settings
from casemate.posture.check import Check, passed, read_fact, skipped, warned
from casemate.posture.programs import QEMU, find_program
from casemate.vmm.kept import installed_build, kept_builds

NAMED = 10
MAX_BYTES = 1 << 20


def check_stored(settings: Settings, qemu: str | None = None) -> Check:
    """*qemu* is the installed binary; None: look for it."""
    name, home = "stored-machines", settings.home
    if not home.is_dir():
        return skipped(name, f"{home} is not there yet")
    try:
        builds = _suspended(home / "sandboxes")
    except PermissionError:
        return skipped(name, "only the daemon's uid and root may look at suspended sandboxes")
    told = _told(settings.run / "upkeep.json")
    foreign, kept = _foreign(builds, home / "vmm", qemu or find_program(QEMU))
    stranded = {str(one["sandbox"]): one for one in told.get("suspended", ()) if one["sandbox"] in builds}
    lost = sorted((foreign - kept) | {sandbox for sandbox, one in stranded.items() if not one["kept"]})
    wrong, advice = [], []
    if lost:
        wrong.append(f"cannot be restored by the installed VMM, nor by one that was kept: {_some(lost)}")
        advice.append("casemate resume --cold starts them from their disks; or install the VMM that made them again")
    for one in told.get("failed", ()):
        wrong.append(f"the snapshot of {one['image']} ({one['shape']}) could not be rebuilt: {one['error']}")
    if told.get("failed"):
        advice.append("the next create of that image tries again")
    if wrong:
        return warned(name, "; ".join(wrong), "; ".join(advice), "" if lost else "casemate image build")
    if kept:
        return passed(name, f"the installed VMM cannot restore these, the build kept for them can: {_some(kept)}")
    return passed(name, f"{len(builds)} suspended, all made with the installed VMM" if builds else "nothing suspended")


def _suspended(sandboxes: Path) -> dict[str, str]:
    """Which suspended sandbox needs which build of the VMM; one whose manifest cannot be read needs none we know."""
    found = {}
    for folder in sandboxes.iterdir() if sandboxes.is_dir() else ():
        manifest = folder / "suspended" / "manifest.json"
        if manifest.is_file():
            found[folder.name] = _build_of(manifest)
    return found


def _build_of(manifest: Path) -> str:
    body = _json(manifest)
    platform = body.get("platform")
    return str(platform.get("vmm_sha256", "")) if isinstance(platform, dict) else ""


def _foreign(builds: dict[str, str], vmm: Path, binary: str | None) -> tuple[set[str], set[str]]:
    """(made with a build that is not installed, those of them whose build is kept)"""
    installed, kept = {installed_build(vmm, "firecracker")} - {None}, kept_builds(vmm)
    if binary is not None:
        with open(binary, "rb") as file:
            installed.add(hashlib.file_digest(file, "sha256").hexdigest())
    if not installed:  # that there is no VMM is another check's to say
        return set(), set()
    foreign = {sandbox for sandbox, build in builds.items() if build not in installed}
    return foreign, {sandbox for sandbox in foreign if builds[sandbox] in kept}


def _told(report: Path) -> dict[str, Any]:
    """What the last daemon wrote; nothing where none has, or another version."""
    body = _json(report)
    whole = all(
        isinstance(body.get(key), list) and all(isinstance(one, dict) and needed <= one.keys() for one in body[key])
        for key, needed in (("suspended", {"sandbox", "kept"}), ("failed", {"image", "shape", "error"}))
    )
    return body if whole else {}


def _json(path: Path) -> dict[str, Any]:
    text = read_fact(path) or ""
    try:
        body = json.loads(text[:MAX_BYTES])
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}


def _some(names: Any) -> str:
    listed = sorted(names)
    return ", ".join(listed[:NAMED]) + (f" and {len(listed) - NAMED} more" if len(listed) > NAMED else "")
