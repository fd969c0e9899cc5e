"""From an image version to the snapshots that sandboxes start from."""

from casemate.build.service import BuildHost, Images
from casemate.build.snapshot import Recipe, build_snapshot

__all__ = ["BuildHost", "Images", "Recipe", "build_snapshot"]
