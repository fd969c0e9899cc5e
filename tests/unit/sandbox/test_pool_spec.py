"""How many members a pool is to have: the schedule and the rule, by a clock that is handed in."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest
from cronsim import CronSim
from hypothesis import given
from hypothesis import strategies as st

from casemate.errors import InvalidSpec, NotSupported
from casemate.sandbox.pool_spec import (
    PEAK_WINDOW_S,
    SHARED,
    SHRINK_EVERY_S,
    Demand,
    PoolSpec,
    Scale,
    is_due,
    pools_of,
)
from casemate.sandbox.spec import Shape

SHAPE = Shape(1, 512, 1024)
MONDAY_9 = datetime(2024, 6, 3, 9, 0, 30)
SUNDAY = datetime(2024, 6, 2, 9, 0)


def spec(**more: Any) -> PoolSpec:
    return PoolSpec("python", SHAPE, **{"min_ready": 2, **more})


@pytest.mark.parametrize(
    "wrong",
    [
        {"min_ready": -1},
        {"min_ready": 1001},
        {"max_ready": 1},
        {"min_ready": 0},  # and at most 0: a pool of nothing
        {"max_ready": 1001},
        {"target_utilization": 0.0},
        {"target_utilization": 1.1},
        {"target_utilization": float("nan")},
        {"schedule": ""},
        {"schedule": "* * * *"},
        {"schedule": "* * * * * *"},  # seconds are not for minutes
        {"schedule": "61 * * * *"},
        {"schedule": "0 0 30 2 *"},
        {"schedule": "0 0 31 2,4 *"},
        {"schedule": "@daily"},
        {"schedule": "* " * 200},
    ],
)
def test_what_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidSpec):
        spec(**wrong)


def test_another_network_is_not_served() -> None:
    with pytest.raises(NotSupported):
        spec(network="internet")


@pytest.mark.parametrize(
    ("schedule", "moment", "due"),
    [
        ("* 8-18 * * 1-5", MONDAY_9, True),
        ("* 8-18 * * 1-5", MONDAY_9.replace(hour=19), False),
        ("* 8-18 * * 1-5", SUNDAY, False),
        ("* 8-18 * * MON-FRI", MONDAY_9, True),
        ("0 9 * * *", MONDAY_9, True),
        ("0 9 * * *", MONDAY_9.replace(minute=1, second=0), False),
        ("*/15 * * * *", MONDAY_9.replace(minute=45, second=59), True),
        ("0 0 29 2 *", datetime(2024, 2, 29), True),
    ],
)
def test_a_schedule_counts_by_the_minute(schedule: str, moment: datetime, due: bool) -> None:
    assert is_due(schedule, moment) is due


def test_outside_its_schedule_a_pool_without_a_maximum_is_empty_and_one_with_it_follows_use() -> None:
    fixed, scaled = spec(schedule="* 8-18 * * 1-5"), spec(schedule="* 8-18 * * 1-5", max_ready=8)
    assert (fixed.floor(MONDAY_9), fixed.ceiling(MONDAY_9)) == (2, 2)
    assert (fixed.floor(SUNDAY), fixed.ceiling(SUNDAY)) == (0, 0)
    assert (scaled.floor(SUNDAY), scaled.ceiling(SUNDAY)) == (0, 8)


def test_the_share_in_use_is_kept_below_the_target() -> None:
    demand, scale, pool = Demand(), Scale(), spec(max_ready=20, target_utilization=0.7)
    assert scale.settle(pool, demand, 0.0, MONDAY_9) == 2
    for n in range(14):
        demand.begin(float(n))
    assert scale.settle(pool, demand, 14.0, MONDAY_9) == 6  # 14 of 20 in use: 0.7
    demand.begin(14.0)
    assert scale.settle(pool, demand, 15.0, MONDAY_9) == 7


def test_a_full_target_keeps_no_more_than_the_floor() -> None:
    demand = Demand()
    for n in range(50):
        demand.begin(float(n))
    assert Scale().settle(spec(max_ready=20, target_utilization=1.0), demand, 50.0, MONDAY_9) == 2


def test_more_at_once_fewer_one_by_one_and_only_when_the_peak_is_forgotten() -> None:
    demand, scale, pool = Demand(), Scale(), spec(max_ready=4, target_utilization=0.5)
    for n in range(10):
        demand.begin(float(n))
    assert scale.settle(pool, demand, 10.0, MONDAY_9) == 4
    for _ in range(10):
        demand.end(11.0)
    assert scale.settle(pool, demand, 11.0 + PEAK_WINDOW_S, MONDAY_9) == 4
    after = 12.0 + PEAK_WINDOW_S
    assert scale.settle(pool, demand, after, MONDAY_9) == 3
    assert scale.settle(pool, demand, after + SHRINK_EVERY_S - 1, MONDAY_9) == 3
    assert scale.settle(pool, demand, after + SHRINK_EVERY_S, MONDAY_9) == 2
    assert scale.settle(pool, demand, after + 9 * SHRINK_EVERY_S, MONDAY_9) == 2


def test_over_a_lowered_ceiling_it_shrinks_at_once() -> None:
    demand, scale = Demand(), Scale()
    assert scale.settle(spec(min_ready=8), demand, 0.0, MONDAY_9) == 8
    assert scale.settle(spec(min_ready=3), demand, 1.0, MONDAY_9) == 3
    nightly = spec(min_ready=3, schedule="* 8-18 * * 1-5")
    assert scale.settle(nightly, demand, 2.0, MONDAY_9) == 3
    assert scale.settle(nightly, demand, 3.0, MONDAY_9 + timedelta(hours=12)) == 0


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 100)), max_size=60))
def test_a_peak_is_the_most_at_once_in_the_window(acts: list[tuple[bool, float]]) -> None:
    demand, now, history = Demand(window_s=200.0), 0.0, [(0.0, 0)]
    for begins, after in acts:
        now += after
        if begins:
            demand.begin(now)
        elif demand.in_use:
            demand.end(now)
        history.append((now, demand.in_use))
        # it was as many as before from the last change on, so that change's level lasted into the window
        levels = [
            level
            for (_, level), (until, _) in zip(history, [*history[1:], (now, 0)], strict=True)
            if until >= now - 200
        ]
        assert demand.peak(now) == max(levels)


@given(st.lists(st.integers(0, 40), max_size=40), st.floats(0.05, 1), st.integers(0, 5), st.integers(5, 9))
def test_it_stays_between_floor_and_ceiling(uses: list[int], target: float, least: int, most: int) -> None:
    demand, scale = Demand(), Scale()
    pool = spec(min_ready=least, max_ready=most, target_utilization=target)
    for now, wanted_use in enumerate(uses):
        while demand.in_use < wanted_use:
            demand.begin(float(now))
        while demand.in_use > wanted_use:
            demand.end(float(now))
        assert least <= scale.settle(pool, demand, float(now), MONDAY_9) <= most


def test_the_configurations_pools_are_for_everybody_and_of_the_default_shape() -> None:
    tables = [
        {"image": "python", "min_ready": 4},
        {
            "image": "python",
            "min_ready": 1,
            "max_ready": 3,
            "tenant": "alice",
            "memory_mib": 256,
            "schedule": "* 9 * * *",
        },
    ]
    assert pools_of(tables, SHAPE) == [
        (SHARED, PoolSpec("python", SHAPE, 4)),
        ("alice", PoolSpec("python", Shape(1, 256, 1024), 1, 3, schedule="* 9 * * *")),
    ]


@pytest.mark.parametrize(
    ("table", "named"),
    [
        ({"image": "python"}, "min_ready is missing"),
        ({"min_ready": 1}, "image is missing"),
        ({"image": "python", "min_ready": "4"}, "min_ready"),
        ({"image": "python", "min_ready": True}, "min_ready"),
        ({"image": 7, "min_ready": 1}, "image"),
        ({"image": "python", "min_ready": 1, "burst": 2}, "burst"),
        ({"image": "python", "min_ready": 1, "disk_mib": 2_000_000}, "disk_mib"),
        ({"image": "python", "min_ready": 1, "memory_mib": 64}, "memory_mib"),
    ],
)
def test_what_is_wrong_with_the_configurations_pools_is_named(table: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidSpec, match=named):
        pools_of([table], SHAPE)


FIELDS = [
    ("*", "*/7", "0", "5-20", "59"),
    ("*", "8-18", "0", "*/5"),
    ("*", "1", "L", "LW", "13", "31"),
    ("*", "3", "*/3"),
]
WEEKDAYS = ("*", "1-5", "0", "SUN", "MON#1", "5L", "7")


@given(
    st.tuples(*map(st.sampled_from, FIELDS), st.sampled_from(WEEKDAYS)),
    st.datetimes(datetime(2023, 1, 1), datetime(2026, 1, 1)),
)
def test_a_minute_is_due_when_the_search_for_the_next_one_finds_it(fields: tuple[str, ...], moment: datetime) -> None:
    schedule, minute = " ".join(fields), moment.replace(second=0, microsecond=0)
    found = next(CronSim(schedule, minute - timedelta(seconds=1)))
    assert is_due(schedule, moment) is (found == minute)
    assert is_due(schedule, found)
