"""From an image version to the snapshots that sandboxes start from."""

from casemate.build.ground import Ground
from casemate.build.host import BuildHost
from casemate.build.service import Images, forget_unfinished, open_images
from casemate.build.snapshot import Place, Recipe, build_snapshot

__all__ = ["BuildHost", "Ground", "Images", "Place", "Recipe", "build_snapshot", "forget_unfinished", "open_images"]
