"""What building needs of its host, as the composition root hands it over."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from casemate.build.snapshot import Progress
from casemate.images import Artifacts, Bootstrap, Identities, Workshop
from casemate.sandbox import Seal, Shape
from casemate.storage import Database, VersionRow
from casemate.vmm import Driver

BUILT_IN = "system"  # the tenant that the images we come with belong to; everybody may use them


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
