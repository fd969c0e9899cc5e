"""What a daemon does at its start about what was stored under another VMM, kernel or agent, and what it says of it.

``run/upkeep.json`` below the home says the same to `casemate doctor`, which needs no daemon: written here at the
start and after each rebuild (temporary name, rename), read by posture/stored.py, replaced by the next daemon.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import anyio
import structlog

from casemate import errors
from casemate.build.host import BuildHost
from casemate.build.removal import suspended
from casemate.build.shapes import Rebuild, Shapes
from casemate.sandbox import Here, Made, Shape, sentences, unfit
from casemate.storage import VersionRow
from casemate.storage import images as rows
from casemate.vmm.kept import kept_builds

log = structlog.get_logger()
MAX_MANIFEST_BYTES = 1 << 20
SHARED = "system"  # the tenant whose images everybody may use


@dataclass(frozen=True, slots=True)
class Stranded:
    """A suspended sandbox that the installed VMM can't restore; *kept*: whether a VMM build kept for it can."""

    sandbox: str
    kept: bool
    why: str
    remedy: str


class Upkeep:
    def __init__(self, host: BuildHost, shapes: Shapes, report: Path) -> None:
        self._host = host
        self._shapes = shapes
        self._report = report
        self._stranded: Sequence[Stranded] = ()
        self._writing = anyio.Lock()
        shapes.on_rebuild = self._write

    async def run(self) -> None:
        """Judge what is suspended, then rebuild one by one the snapshots of active versions that fit no more.

        Each is tried once; after that the next create of its shape tries again.
        """
        try:
            platform = await self._host.driver.platform()
        except errors.HostError as error:  # a host that cannot run a machine says so at each create
            log.error("what is stored cannot be compared with this host", error=str(error))
            return
        self._stranded = await anyio.to_thread.run_sync(judged, self._host, Here(platform, ()))
        for one in self._stranded:
            log.warning("a suspended sandbox cannot be restored by the installed VMM", **asdict(one))
        await self._write()
        for version, shape in await self._stale():
            if version.id in {now.id for now in await self._host.database.read(rows.all_versions)}:
                await self._shapes.rebuild(version, shape)
        await self._write()

    async def _stale(self) -> list[tuple[VersionRow, Shape]]:
        """The default shape first: it is what most creates ask for."""
        found = []
        for version in await self._host.database.read(rows.all_versions):
            if not (version.active and version.state == "ready") or version.contains_session_state:
                continue
            stored = await self._shapes.stored(version)
            for shape in dict.fromkeys(one.shape for one in stored):
                if not await self._fits(version, shape):
                    found.append((version, shape))
        return sorted(found, key=lambda pair: pair[1] != self._host.default_shape)

    async def _fits(self, version: VersionRow, shape: Shape) -> bool:
        for one in await self._shapes.stored(version):
            try:
                if one.shape == shape and await self._shapes.fits(version, one.row) is not None:
                    return True
            except (errors.ImageBroken, errors.SealBroken) as error:
                log.warning("a snapshot cannot be used", snapshot=one.row.id, error=error.message)
            except (errors.CasemateError, KeyError) as error:  # its image is not whole: nothing to rebuild from
                log.warning("a snapshot cannot be judged; the next create says why", image=version.reference,
                            error=str(error))  # fmt: skip
                return True
        return False

    def for_everybody(self) -> dict[str, Any]:
        """For /v1/health, which any tenant may read: the images everybody uses, and of the others how many."""
        whole = self.to_json()
        shared = _by_state(filter(_is_shared, self._shapes.rebuilds.values()))
        kept = sum(one["kept"] for one in whole["suspended"])
        return {
            **shared,
            "rebuilding_in_all": len(whole["rebuilding"]),
            "failed_in_all": len(whole["failed"]),
            "suspended": {"restored_by_kept_vmm": kept, "not_restorable": len(whole["suspended"]) - kept},
        }

    def to_json(self) -> dict[str, Any]:
        """All of it, for the host's owner."""
        suspended = [asdict(one) for one in self._stranded]
        return _by_state(self._shapes.rebuilds.values()) | {"suspended": suspended}

    def of(self, version: VersionRow) -> list[dict[str, Any]]:
        """What of one version is being rebuilt, or could not be."""
        return [_said(rebuild) for rebuild in self._shapes.rebuilds.values() if rebuild.version.id == version.id]

    async def _write(self) -> None:
        try:
            async with self._writing:  # else an older one could come last
                body = json.dumps(self.to_json() | {"at": time.time()}, indent=1)
                await anyio.to_thread.run_sync(_replace, self._report, body)
        except OSError as error:  # doctor says less, and nothing depends on it
            log.warning("the report for doctor could not be written", path=str(self._report), error=str(error))


def _is_shared(rebuild: Rebuild) -> bool:
    return rebuild.version.tenant == SHARED


def _by_state(rebuilds: Iterable[Rebuild]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {"rebuilding": [], "failed": []}
    for body in map(_said, rebuilds):
        found[body["state"]].append(body)
    return found


def _said(rebuild: Rebuild) -> dict[str, Any]:
    body = {"image": rebuild.version.reference, "shape": rebuild.shape_said, "why": rebuild.why}
    if (failure := rebuild.job.failure) is not None:
        return body | {"state": "failed", "error": str(failure)}
    step, message, fraction = rebuild.job.progress or ("wait", "", None)
    return body | {"state": "rebuilding", "step": step, "message": message, "fraction": fraction}


def judged(host: BuildHost, here: Here) -> list[Stranded]:
    """Every suspended sandbox that does not fit *here* by the installed VMM alone. Blocks."""
    builds = kept_builds(host.vmm_builds)
    found = []
    for manifest in suspended(host.sandboxes):
        sandbox = manifest.parent.parent.name
        try:
            with manifest.open("rb") as file:
                made = Made.from_json(json.loads(file.read(MAX_MANIFEST_BYTES)))
        except FileNotFoundError:  # just resumed, or ended
            continue
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            found.append(Stranded(sandbox, False, f"its manifest cannot be read: {error}", "casemate resume --cold"))
            continue
        there = [disk for disk in (made.root, made.agent) if disk.is_file()]
        misfits = unfit(made, Here(here.platform, there), "suspended-sandbox")
        if misfits:
            left = unfit(made, Here(here.platform, there, builds), "suspended-sandbox")
            remedy = "; ".join(dict.fromkeys(misfit.remedy for misfit in left))
            found.append(Stranded(sandbox, not left, sentences(misfits), remedy))
    return found


def _replace(path: Path, body: str) -> None:
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(body)
    temporary.chmod(0o600)
    temporary.rename(path)
