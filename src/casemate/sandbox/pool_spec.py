"""What a pool is to be (PoolSpec), and the rule how many members it is to have; without a clock of its own."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from casemate.errors import InvalidSpec, NotSupported
from casemate.sandbox.spec import Shape, check_shape

SHARED = "system"  # the tenant of pools that serve everybody; members belong to it until they are claimed
MAX_READY = 1000
MAX_SCHEDULE_CHARS = 200
PEAK_WINDOW_S = 300.0
SHRINK_EVERY_S = 30.0


@dataclass(frozen=True, slots=True)
class PoolSpec:
    """A checked wish. Raises InvalidSpec or NotSupported when made from anything else.

    *max_ready* None: as many as *min_ready*. *schedule*: cron's five fields, in the host's local time.
    """

    image: str
    shape: Shape
    min_ready: int
    max_ready: int | None = None
    target_utilization: float = 0.7
    network: str = "none"
    schedule: str | None = None

    def __post_init__(self) -> None:
        if self.network != "none":
            raise NotSupported(f"network={self.network!r}: only 'none' is served", hint='use network="none"')
        check_shape(self.shape.vcpus, self.shape.memory_mib, self.shape.disk_mib)
        if not 0 <= self.min_ready <= MAX_READY:
            raise InvalidSpec(f"min_ready is {self.min_ready}; it must be from 0 to {MAX_READY}")
        if not max(1, self.min_ready) <= self.most <= MAX_READY:
            raise InvalidSpec(f"max_ready is {self.most}; it must be from 1, and min_ready, to {MAX_READY}")
        if not 0.05 <= self.target_utilization <= 1:
            raise InvalidSpec(f"target_utilization is {self.target_utilization:g}; it must be from 0.05 to 1")
        if self.schedule is not None:
            check_schedule(self.schedule)

    @property
    def most(self) -> int:
        return self.min_ready if self.max_ready is None else self.max_ready

    def floor(self, now: datetime) -> int:
        """The least that are to be ready in that minute of local time."""
        return self.min_ready if self.schedule is None or is_due(self.schedule, now) else 0

    def ceiling(self, now: datetime) -> int:
        """The most; without a *max_ready* of its own the pool follows its schedule down to nothing."""
        return self.floor(now) if self.max_ready is None else self.max_ready


_FIELDS = {
    "image": str,
    "min_ready": int,
    "max_ready": int,
    "target_utilization": (int, float),
    "network": str,
    "schedule": str,
    "tenant": str,
    "vcpus": int,
    "memory_mib": int,
    "disk_mib": int,
}


def pools_of(tables: Iterable[Mapping[str, Any]], default: Shape) -> list[tuple[str, PoolSpec]]:
    """What ``[[pools]]`` of the configuration asks for, and for whom: for everybody unless a tenant is named.

    Raises InvalidSpec naming the field.
    """
    found = []
    for table in tables:
        given = dict(table)
        for name, value in given.items():
            kind = _FIELDS.get(name)
            if kind is None:
                raise InvalidSpec(f"setting pools: unknown field {name!r}", hint=f"known: {', '.join(_FIELDS)}")
            if not isinstance(value, kind) or isinstance(value, bool):  # type: ignore[arg-type]
                raise InvalidSpec(f"setting pools: {name} is {value!r}")
        if missing := {"image", "min_ready"} - set(given):
            raise InvalidSpec(f"setting pools: {sorted(missing)[0]} is missing")
        parts = ((name, given.pop(name, getattr(default, name))) for name in ("vcpus", "memory_mib", "disk_mib"))
        tenant = given.pop("tenant", SHARED)
        found.append((tenant, PoolSpec(shape=Shape(**dict(parts)), **given)))
    return found


def check_schedule(schedule: str) -> None:
    """Raises InvalidSpec for what is not the five fields of cron, or never comes."""
    if len(schedule) > MAX_SCHEDULE_CHARS or len(schedule.split()) != 5:
        raise InvalidSpec(
            f"schedule {schedule[:80]!r} is not valid",
            hint="five fields as in cron, at most 200 characters: '* 8-18 * * 1-5' is office hours",
        )
    from cronsim import CronSim, CronSimError  # late: most pools have no schedule

    try:
        next(CronSim(schedule, datetime(2024, 1, 1)))
    except CronSimError as error:
        raise InvalidSpec(f"schedule {schedule!r}: {str(error).lower()}", hint="five fields as in cron") from error
    except StopIteration as error:
        raise InvalidSpec(f"schedule {schedule!r} never comes") from error


def is_due(schedule: str, now: datetime) -> bool:
    """Whether *schedule* matches the minute of *now*, which has no time zone: it is what the wall says.

    Looks at its fields, since the search for the next match may go through decades.
    """
    from cronsim import CronSim

    fields = CronSim(schedule, now)
    time_fits = now.minute in fields.minutes and now.hour in fields.hours
    return time_fits and now.month in fields.months and fields.match_day(now.date())


@dataclass(slots=True)
class Demand:
    """How many sandboxes of a pool's kind are in use, and the most that were at once in the last five minutes.

    Every create that the pool could serve counts until its sandbox ends, also one that missed.
    """

    window_s: float = PEAK_WINDOW_S
    in_use: int = 0
    _peaks: deque[tuple[float, int]] = field(default_factory=deque)  # falling from left to right

    def begin(self, now_s: float) -> None:
        self.in_use += 1
        while self._peaks and self._peaks[-1][1] <= self.in_use:
            self._peaks.pop()
        self._peaks.append((now_s, self.in_use))

    def end(self, now_s: float) -> None:
        """What ended was in use until this moment."""
        while self._peaks and self._peaks[-1][1] <= self.in_use:
            self._peaks.pop()
        self._peaks.append((now_s, self.in_use))
        self.in_use -= 1

    def peak(self, now_s: float) -> int:
        while self._peaks and self._peaks[0][0] < now_s - self.window_s:
            self._peaks.popleft()
        return max(self.in_use, self._peaks[0][1] if self._peaks else 0)


@dataclass(slots=True)
class Scale:
    """How many members a pool is to have ready.

    The rule: of all that are in use or ready, the share in use is not to be over *target_utilization* at the peak
    of the last five minutes; so *peak * (1 - u) / u* are to be ready, rounded up, at least *floor* and at most
    *ceiling*. More are wanted at once. Fewer are wanted one by one, one each 30 s, except that what is over the
    ceiling goes at once: the ceiling is somebody's word, the peak is a guess.
    """

    wanted: int = 0
    _shrunk_at: float = -math.inf

    def settle(self, spec: PoolSpec, demand: Demand, now_s: float, wall: datetime) -> int:
        ceiling = spec.ceiling(wall)
        spare = math.ceil(round(demand.peak(now_s) * (1 - spec.target_utilization) / spec.target_utilization, 6))
        aim = min(max(spare, spec.floor(wall)), ceiling)
        if aim >= self.wanted or self.wanted > ceiling:
            if aim != self.wanted:
                self._shrunk_at = now_s
            self.wanted = min(max(aim, self.wanted), ceiling)
        elif now_s - self._shrunk_at >= SHRINK_EVERY_S:
            self._shrunk_at = now_s
            self.wanted -= 1
        return self.wanted
