"""How an image is named: ``python`` (its active version), ``python@3`` (one version), ``sha256:…`` (its root disk)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

from casemate.errors import InvalidSpec, NotSupported
from casemate.storage import VersionRow

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_DIGEST = re.compile(r"[0-9a-f]{12,64}")
RESERVED = frozenset({"prune"})
DIGEST_PREFIX = "sha256:"


@dataclass(frozen=True, slots=True)
class Reference:
    """Just one of *digest* and *name* is set."""

    name: str = ""
    number: int | None = None
    digest: str = ""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises InvalidSpec; NotSupported for a tag other than latest."""
        if text.startswith(DIGEST_PREFIX):
            digest = text.removeprefix(DIGEST_PREFIX)
            if not _DIGEST.fullmatch(digest):
                raise InvalidSpec(f"image {text[:80]!r}: after sha256: come 12 to 64 hexadecimal digits")
            return cls(digest=digest)
        name, at, number = text.partition("@")
        name, _, tag = name.partition(":")
        if tag not in ("", "latest"):
            raise NotSupported(f"image {text[:80]!r}: tags are not served", hint=f"use a version: {name[:60]}@1")
        if at and not (number.isascii() and number.isdecimal() and len(number) <= 9):
            raise InvalidSpec(f"image {text[:80]!r}: what follows @ is a version's number")
        check_name(name)
        return cls(name=name, number=int(number) if at else None)

    def means(self, version: VersionRow) -> bool:
        if self.digest:
            return version.artifacts.get("root", "").startswith(self.digest)
        return version.name == self.name and (version.active if self.number is None else version.number == self.number)


def check_name(name: str) -> None:
    """Raises InvalidSpec."""
    if name in RESERVED:
        raise InvalidSpec(f"no image can be named {name!r}: it is a word of the API")
    if not _NAME.fullmatch(name):
        raise InvalidSpec(f"image name {name[:80]!r} is not valid", hint="up to 63 of a-z, 0-9, ., _ and -")
