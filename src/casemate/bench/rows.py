"""Samples become a row."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Crowds:
    """How many sandboxes there are at once in the rows with several: asked for, copied, ready in a pool."""

    burst: int = 20
    copies: int = 10
    ready: int = 3


@dataclass
class Samples:
    """What one act took, in milliseconds, and how often it failed."""

    ms: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


def percentile(values: Sequence[float], share: float) -> float | None:
    """The smallest value that at least *share* of all are not above (nearest rank); None of nothing."""
    ranked = sorted(values)
    return ranked[max(0, math.ceil(share * len(ranked)) - 1)] if ranked else None


def row(name: str, product: Samples, floor: Samples, **more: Any) -> dict[str, Any]:
    """One line of the report. *ratio* is that of the medians; None where there is no floor."""
    p50, floor_p50 = percentile(product.ms, 0.5), percentile(floor.ms, 0.5)
    found: dict[str, Any] = {
        "name": name,
        "n": len(product.ms),
        "failures": len(product.errors),
        "p50_ms": _round(p50),
        "p95_ms": _round(percentile(product.ms, 0.95)),
        "p99_ms": _round(percentile(product.ms, 0.99)),
        "floor_p50_ms": _round(floor_p50),
        "ratio": round(p50 / floor_p50, 2) if p50 and floor_p50 else None,
    }
    if floor.errors:
        found["floor_failures"] = len(floor.errors)
    if reasons := [*product.errors, *floor.errors]:
        found["first_failure"] = reasons[0]
    return found | more


def rates(size_bytes: int, measured: dict[str, Any]) -> dict[str, float]:
    """MB/s (10^6 bytes) of a row that moved *size_bytes*."""
    found = {}
    for key, name in (("p50_ms", "mb_per_s_p50"), ("floor_p50_ms", "floor_mb_per_s_p50")):
        if measured[key]:
            found[name] = round(size_bytes / 1e3 / measured[key], 1)
    return found


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 2)
