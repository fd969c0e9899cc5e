"""What building needs of its host, as the composition root hands it over."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import anyio

from casemate.audit import Trail
from casemate.build.snapshot import Progress
from casemate.images import Artifacts, Bootstrap, Identities, Workshop
from casemate.sandbox import Here, Made, Seal, Shape
from casemate.storage import Database, VersionRow
from casemate.vmm import Driver
from casemate.vmm.kept import kept_builds

BUILT_IN = "system"  # the tenant that the images we come with belong to; everybody may use them
BUILT_IN_NAMES = ("python", "python-full")
OWNER = "local"  # the tenant of who runs this host


@dataclass(frozen=True, slots=True)
class BuildHost:
    """The workshop's calls block and run in a worker thread."""

    driver: Driver
    database: Database
    workshop: Workshop
    bootstrap: Bootstrap
    snapshots: Path
    sandboxes: Path  # below it, what suspended ones are stored as
    vmm_builds: Path  # vmm/<sha256>/
    upkeep_report: Path
    seal: Seal
    trail: Trail
    verified: Identities
    host_id: str
    default_shape: Shape
    boot_timeout_s: float
    shape_budget_mib: int

    def gather(self, name: str, force: bool, progress: Progress) -> Artifacts:
        return self.workshop.prepare(name, force=force, progress=progress, bootstrap=self.bootstrap)

    def artifacts(self, version: VersionRow) -> Artifacts:
        """A version's artifacts, with the agent disk of today: the agent belongs to us, not to the image."""
        stored = version.artifacts
        return Artifacts(
            **{part: self.workshop.store.path(stored[part]) for part in ("kernel", "initrd", "root")},
            agent=self.workshop.agent(),
            kernel_release=stored["kernel_release"],
        )

    async def here(self, made: Made) -> Here:
        """This host, as what was *made* so sees it: the disks it stands on, and the VMM builds kept for such as it."""
        builds, disks = await anyio.to_thread.run_sync(self._there, made)
        return Here(await self.driver.platform(), disks, builds)

    def _there(self, made: Made) -> tuple[list[str], list[Path]]:
        return kept_builds(self.vmm_builds), [disk for disk in (made.root, made.agent) if disk.is_file()]
