"""How an image is named.

python      its active version
python@3    one version
work:good   the version that has that tag
sha256:…    the version with that root disk
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

from casemate.errors import InvalidSpec
from casemate.storage import VersionRow

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_DIGEST = re.compile(r"[0-9a-f]{12,64}")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,62}")
RESERVED = frozenset({"prune"})
LATEST = "latest"  # the active version, whatever tags there are
DIGEST_PREFIX = "sha256:"


@dataclass(frozen=True, slots=True)
class Reference:
    """Just one of *digest* and *name* is set."""

    name: str = ""
    number: int | None = None
    digest: str = ""
    tag: str = ""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises InvalidSpec."""
        if text.startswith(DIGEST_PREFIX):
            digest = text.removeprefix(DIGEST_PREFIX)
            if not _DIGEST.fullmatch(digest):
                raise InvalidSpec(f"image {text[:80]!r}: after sha256: come 12 to 64 hexadecimal digits")
            return cls(digest=digest)
        name, at, number = text.partition("@")
        name, _, tag = name.partition(":")
        tag = "" if tag == LATEST else tag
        if tag:
            check_tag(tag)
        if at and not (number.isascii() and number.isdecimal() and len(number) <= 9):
            raise InvalidSpec(f"image {text[:80]!r}: what follows @ is a version's number")
        if tag and at:
            raise InvalidSpec(f"image {text[:80]!r}: a tag and a version's number name two things")
        check_name(name)
        return cls(name=name, number=int(number) if at else None, tag=tag)

    def means(self, version: VersionRow) -> bool:
        if self.digest:  # what was made of a sandbox has the same root disk, and much else
            return version.kind == "built" and version.artifacts.get("root", "").startswith(self.digest)
        if version.name != self.name:
            return False
        if self.tag:
            return version.tag == self.tag
        return version.active if self.number is None else version.number == self.number


def check_name(name: str) -> None:
    """Raises InvalidSpec."""
    if name in RESERVED:
        raise InvalidSpec(f"no image can be named {name!r}: it is a word of the API")
    if not _NAME.fullmatch(name):
        raise InvalidSpec(f"image name {name[:80]!r} is not valid", hint="up to 63 of a-z, 0-9, ., _ and -")


def check_tag(tag: str) -> None:
    """Raises InvalidSpec."""
    if not _TAG.fullmatch(tag):
        raise InvalidSpec(f"tag {tag[:80]!r} is not valid", hint="up to 63 of a-z, A-Z, 0-9, ., _ and -")
