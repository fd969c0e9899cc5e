"""From an image version to the snapshots that sandboxes start from."""

from casemate.build.service import Images, Workshop
from casemate.build.snapshot import Recipe, build_snapshot

__all__ = ["Images", "Recipe", "Workshop", "build_snapshot"]
