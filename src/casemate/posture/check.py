"""A check is data: what was looked at, what was found, and what to do about it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path


class Status(StrEnum):
    """FAIL: no sandbox can run. WARN: it runs, with less speed or less safety. SKIP: it does not apply here."""

    PASS = "pass"  # noqa: S105 - no password
    WARN = "warn"
    FAIL = "fail"
    SKIP = "skip"


@dataclass(frozen=True, slots=True)
class Check:
    """*hint* says what it means and what to do, *fix* is a command one can paste; both empty on a pass."""

    name: str
    status: Status
    found: str
    hint: str = ""
    fix: str = ""

    def to_json(self) -> dict[str, str]:
        return asdict(self)


def passed(name: str, found: str) -> Check:
    return Check(name, Status.PASS, found)


def warned(name: str, found: str, hint: str, fix: str = "") -> Check:
    return Check(name, Status.WARN, found, hint, fix)


def failed(name: str, found: str, hint: str, fix: str = "") -> Check:
    return Check(name, Status.FAIL, found, hint, fix)


def skipped(name: str, found: str) -> Check:
    return Check(name, Status.SKIP, found)


def read_fact(path: str | Path) -> str | None:
    """What the kernel says in the file *path*, or None where it says nothing (no such file, or not to us)."""
    try:
        return Path(path).read_text(errors="replace").strip()
    except OSError:
        return None
