"""What a daemon counts and times, for Prometheus and for ``casemate pool ls``. Since it started; nothing is kept."""

from __future__ import annotations

import math
from collections import Counter as Tally
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

KEPT = 1000  # samples, for the percentiles of a list
_CLAIM_S = (0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1, 5)
_RESTORE_S = (0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2, 5, 10, 30)
_POOL = ("pool", "image")


class Miss(StrEnum):
    """Why a create that a pool is there for was not served by it."""

    EMPTY = "empty"  # it has no ready member at the moment
    SHAPE = "shape"  # its members have another shape
    POLICY = "policy"  # its members have another network policy
    VERSION = "version"  # its members are of another version of the image, or of another snapshot of it
    DEAD = "dead"  # the members that it had were found dead
    FULL = "full"  # what the sandbox may come to need has no room beside what is reserved


@dataclass(slots=True)
class PoolMeter:
    """What happened to one pool. *claims_ms* and *refills_ms* are the newest samples."""

    hits: int = 0
    misses: Tally[Miss] = field(default_factory=Tally)
    died: int = 0  # members that ended by themselves before anybody claimed them
    failures: int = 0  # members that could not be made
    claims_ms: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT))
    refills_ms: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT))


class Meters:
    """Counters and histograms in a registry of its own; gauges are asked for when somebody looks (``watch``)."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        made: dict[str, Any] = {"registry": self._registry}
        self.creates = Counter("casemate_sandbox_creates", "Sandboxes asked for, by how that went", ("result",), **made)
        self.restores = Histogram(
            "casemate_sandbox_restore_seconds", "From the wish to a clone whose vCPUs run", buckets=_RESTORE_S, **made
        )
        self.claims = Histogram(
            "casemate_pool_claim_seconds",
            "From the wish to a claimed member that runs",
            _POOL,
            buckets=_CLAIM_S,
            **made,
        )
        self.refills = Histogram(
            "casemate_pool_refill_seconds", "To make one ready member", _POOL, buckets=_RESTORE_S, **made
        )

    def watch(self, families: Callable[[], Iterable[Metric]]) -> None:
        """*families* is called at each look."""
        self._registry.register(_Watched(families))

    def forget_pool(self, pool: str, image: str) -> None:
        for meter in (self.claims, self.refills):
            meter.remove(pool, image)

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self._registry)


class _Watched(Collector):
    def __init__(self, families: Callable[[], Iterable[Metric]]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families()

    def describe(self) -> Iterable[Metric]:
        return ()  # the registry would ask for everything once, before there is anything


def gauge(name: str, said: str, labels: Sequence[str], values: Iterable[tuple[tuple[str, ...], float]]) -> Metric:
    made = GaugeMetricFamily(name, said, labels=labels)
    for of, value in values:
        made.add_metric(of, value)
    return made


def counter(name: str, said: str, labels: Sequence[str], values: Iterable[tuple[tuple[str, ...], float]]) -> Metric:
    made = CounterMetricFamily(name, said, labels=labels)
    for of, value in values:
        made.add_metric(of, value)
    return made


def sum_up(samples_ms: Iterable[float]) -> dict[str, float | None]:
    """p50 and p95 by nearest rank; None of nothing."""
    ranked = sorted(samples_ms)
    return {
        name: round(ranked[max(0, math.ceil(share * len(ranked)) - 1)], 1) if ranked else None
        for name, share in (("p50_ms", 0.5), ("p95_ms", 0.95))
    }
