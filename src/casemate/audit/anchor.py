"""The newest event, kept beside the database: what shows that the end of the chain was cut off.

Written by the trail after each event, read by it before the next and by a verification; never deleted. One line
of a fixed length, overwritten in place: a process killed in the middle leaves the old one or the new one.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from casemate.errors import HostError, InvalidSpec

_MARK = re.compile(r"0*(\d{1,18}):([0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class Mark:
    """That the chain had this event; as text ``ID:HASH``."""

    id: int
    hash: str

    def __str__(self) -> str:
        return f"{self.id}:{self.hash}"

    @classmethod
    def parse(cls, text: str) -> Self:
        found = _MARK.fullmatch(text)
        if found is None:
            raise InvalidSpec(f"{text[:80]!r} is not ID:HASH", hint="as `casemate audit verify` prints it")
        return cls(int(found[1]), found[2])


def read(path: Path) -> Mark | None:
    """None where there is no file. Raises HostError for one that is no anchor."""
    try:
        return Mark.parse(path.read_text().strip())
    except FileNotFoundError:
        return None
    except (InvalidSpec, ValueError) as error:
        raise HostError(
            f"{path} is not an anchor of the audit trail", hint="keep it as evidence, then move it away"
        ) from error


def write(path: Path, mark: Mark) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.pwrite(descriptor, f"{mark.id:018d}:{mark.hash}\n".encode(), 0)
    finally:
        os.close(descriptor)
