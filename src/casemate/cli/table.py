"""Columns for people; programs ask for --json."""

from __future__ import annotations

import time
from collections.abc import Sequence

STEPS = ((86_400, "d"), (3600, "h"), (60, "min"), (0, "s"))


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    for row in (head, *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def age(since: float) -> str:
    """How long ago, in the unit that fits: ``3 min``."""
    past_s = max(0.0, time.time() - since)
    size_s, unit = next(step for step in STEPS if past_s >= step[0])
    return f"{past_s / (size_s or 1):.0f} {unit}"


def mib(size_bytes: float | None, digits: int = 0) -> str:
    return "-" if size_bytes is None else f"{size_bytes / 2**20:.{digits}f} MiB"
