"""Which releases of Firecracker our machines run under, and why not under the others.

Each defect was looked for in the sources of the tags, so the numbers are of releases that have it. One that is not
here: the virtio-PCI transport of 1.13.0 to 1.14.3 and 1.15.0 (CVE-2026-5747), since only ``--enable-pci`` turns it
on, and no plan of ours has that word.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from casemate.errors import ToolMissing


@dataclass(frozen=True, order=True, slots=True)
class Version:
    major: int
    minor: int
    patch: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.patch}"


PINNED = Version(1, 15, 1)  # what ``casemate vmm install`` fetches
OLDEST = Version(1, 13, 2)
NEXT = Version(1, 16, 0)  # from here on none is known to be good; a patch release of a line that is good is taken
TRIED = Version(1, 12, 0)  # the API that we speak begins here: also what is known to be bad may be run from here on
INSTALL_HINT = "casemate vmm install firecracker"
MAX_TEXT = 200
_NUMBERS = re.compile(r"(?:(?:Firecracker|Jailer) )?v?(\d{1,4})\.(\d{1,4})\.(\d{1,4})")


@dataclass(frozen=True, slots=True)
class Defect:
    """What the releases from *first* to *last* have. *name*: where it is described."""

    first: Version
    last: Version
    name: str
    what: str


JAILER = "its jailer follows a symbolic link and writes to the host's files"
DEFECTS = (
    Defect(Version(0, 0, 0), Version(1, 13, 1), "CVE-2026-1386", JAILER),
    Defect(Version(1, 14, 0), Version(1, 14, 0), "CVE-2026-1386", JAILER),
    Defect(Version(1, 16, 0), Version(1, 16, 0), "firecracker #5958", "vsock is silent after a restore"),
    Defect(Version(1, 16, 0), Version(1, 16, 1), "firecracker #6100", "no connection to a guest after a pause"),
    Defect(Version(1, 16, 0), Version(1, 16, 1), "firecracker #6074", "traffic during a pause ends in a busy loop"),
)
FLAWS = (  # of releases that are used all the same
    Defect(OLDEST, Version(1, 14, 4), "firecracker #5688", "ports of before a restore are given again"),
    Defect(OLDEST, Version(1, 14, 3), "firecracker #5762", "a guest can make it take memory, up to its limit"),
    Defect(OLDEST, Version(1, 14, 3), "firecracker #5809", "a guest's clocks jump at a restore"),
    Defect(
        Version(1, 15, 0), Version(1, 15, 0), "firecracker #5762", "a guest can make it take memory, up to its limit"
    ),
    Defect(Version(1, 15, 0), Version(1, 15, 0), "firecracker #5809", "a guest's clocks jump at a restore"),
)


def parse_version(text: str) -> Version:
    """Of what ``--version`` prints or the API answers; its first line counts. Raises ToolMissing for anything else.

    A build between two releases (``1.16.0-dev``) is none that can be judged by its number.
    """
    line = text.strip().splitlines()[0].strip() if text.strip() else ""
    found = _NUMBERS.fullmatch(line)
    if found is None:
        raise ToolMissing(f"{line[:MAX_TEXT]!r} is no release of Firecracker", hint=INSTALL_HINT)
    return Version(*map(int, found.groups()))


def find_defects(version: Version) -> tuple[Defect, ...]:
    """Why it is refused."""
    return _of(version, DEFECTS)


def find_flaws(version: Version) -> tuple[Defect, ...]:
    """What is wrong with it, and no reason not to use it."""
    return _of(version, FLAWS)


def _of(version: Version, defects: tuple[Defect, ...]) -> tuple[Defect, ...]:
    return tuple(defect for defect in defects if defect.first <= version <= defect.last)


def check_version(version: Version, *, known_bad_allowed: bool = False) -> None:
    """Raises ToolMissing for a release our machines are not to run under, with the defect's name and the remedy.

    *known_bad_allowed*: for tests, and for who knows better; what does not speak our API is refused all the same.
    """
    if version < TRIED or version.major != PINNED.major:
        raise _refused(version, "it speaks another API", "api")
    if known_bad_allowed:
        return
    if defects := find_defects(version):
        first = defects[0]
        raise _refused(version, f"{first.what} ({', '.join(defect.name for defect in defects)})", first.name)
    if not OLDEST <= version < NEXT:
        raise _refused(version, f"it was never tried with Casemate, which knows {OLDEST} to {NEXT} (excluded)", "range")


def _refused(version: Version, why: str, defect: str) -> ToolMissing:
    return ToolMissing(
        f"Firecracker {version} is not used: {why}",
        hint=f"{INSTALL_HINT} (installs {PINNED})",
        evidence={"version": str(version), "defect": defect},
    )
