"""The image store and everything of an image that needs no machine. See README.md."""

from casemate.images.artifacts import Artifacts, Bootstrap, Workshop
from casemate.images.identity import Identities
from casemate.images.rootfs import RECIPES, Recipe
from casemate.images.scratch import copy as copy_disk
from casemate.images.scratch import make as make_scratch_disk
from casemate.images.store import Store, digest_of
from casemate.images.tools import Progress

__all__ = [
    "RECIPES",
    "Artifacts",
    "Bootstrap",
    "Identities",
    "Progress",
    "Recipe",
    "Store",
    "Workshop",
    "copy_disk",
    "digest_of",
    "make_scratch_disk",
]
