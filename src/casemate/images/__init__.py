"""The image store and everything of an image that needs no machine. See README.md.

Lazy, because the launcher imports ``casemate.images.rootfs`` and must stay small.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from casemate.images.artifacts import Artifacts, Bootstrap, Workshop
    from casemate.images.bundle import Manifest, Staged
    from casemate.images.identity import Identities
    from casemate.images.rootfs import RECIPES, Recipe
    from casemate.images.scratch import copy_disk, make_scratch_disk
    from casemate.images.store import Store, digest_of
    from casemate.images.tools import Progress

_HOMES = {
    "RECIPES": "rootfs",
    "Artifacts": "artifacts",
    "Bootstrap": "artifacts",
    "Identities": "identity",
    "Manifest": "bundle",
    "Progress": "tools",
    "Recipe": "rootfs",
    "Staged": "bundle",
    "Store": "store",
    "Workshop": "artifacts",
    "copy_disk": "scratch",
    "digest_of": "store",
    "make_scratch_disk": "scratch",
}
__all__ = [
    "RECIPES",
    "Artifacts",
    "Bootstrap",
    "Identities",
    "Manifest",
    "Progress",
    "Recipe",
    "Staged",
    "Store",
    "Workshop",
    "copy_disk",
    "digest_of",
    "make_scratch_disk",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"casemate.images.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'casemate.images' has no attribute {name!r}")
