"""Fixtures for every test, and the check that a test leaves no trace on the host.

The ladder for real machines (``tests/vm/conftest.py``):  home → daemon → sandbox.
The real Firecracker and guests for it (``tests/firecracker/world.py``):  firecracker → guests.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator

import hypothesis
import pytest
from tests.firecracker.world import firecracker, guests
from tests.traces import Scope, Trace, named, own_scope

__all__ = ["firecracker", "guests", "no_trace", "scope"]

hypothesis.settings.register_profile("any machine", deadline=None)  # how long an example takes proves nothing here
hypothesis.settings.load_profile("any machine")
LONGEST = (
    "vm_pools",
    "bench",
    "clones",
    "vm_suspend",
    "killed_at_rest",
    "rest_across_daemons",
    "guest_lies",
    "vm_images",
    "remanence",
    "fork_differs",
    "fork_faults",
    "fc_faults",
)
SOAK = bool(os.environ.get("CASEMATE_SOAK"))
REPEAT = "all with CASEMATE_SOAK=1"
if not os.environ.get("CASEMATE_SEED"):  # here, so that the workers, which inherit it, draw the same
    os.environ["CASEMATE_SEED"] = str(random.SystemRandom().randrange(1_000_000))
SETTLE_S = 20.0  # a process that was told to end may take a moment on a busy machine; longer is a leak


DRAWN = 6  # one of so many slow tests is run in a run of everything without SOAK


def pytest_report_header() -> str:
    drawn = "all" if SOAK else f"of each sweep, and of the slow tests, a sample ({REPEAT})"
    return f"CASEMATE_SEED={os.environ['CASEMATE_SEED']}: {drawn}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Several workers: a run of everything, which has to come to its end.

    The longest files first, and those with machines spread among the others, which wait more.
    """
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return
    if not SOAK:
        _draw(items)
    files: dict[bool, dict[str, None]] = {True: {}, False: {}}
    for item in items:
        files[item.get_closest_marker("vm") is not None].setdefault(item.nodeid.partition("::")[0])
    turns: dict[str, tuple[bool, float]] = {}
    for group in files.values():
        short = {path: path.rpartition("/test_")[2].removesuffix(".py") not in LONGEST for path in group}
        for place, path in enumerate(sorted(group, key=short.__getitem__)):
            turns[path] = (short[path], place / len(group))
    items.sort(key=lambda item: turns[item.nodeid.partition("::")[0]])


def _draw(items: list[pytest.Item]) -> None:
    """Of the slow tests every sixth, another sixth in each run; the rest says that it was not drawn."""
    slow = [item for item in items if item.get_closest_marker("slow") is not None]
    first = random.Random(os.environ["CASEMATE_SEED"]).randrange(DRAWN)
    skipped = pytest.mark.skip(reason=f"not drawn by CASEMATE_SEED={os.environ['CASEMATE_SEED']}; {REPEAT}")
    for place, item in enumerate(slow):
        if place % DRAWN != first:
            item.add_marker(skipped)


@pytest.fixture(scope="session", autouse=True)
def scope(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scope]:
    with own_scope(tmp_path_factory.getbasetemp().resolve()) as scope:
        yield scope


@pytest.fixture
def no_trace(scope: Scope) -> Iterator[None]:
    """Fails the test after which a process, mount, cgroup, socket or folder of ours is there that was not before."""
    before = Trace.of_now(scope)
    yield
    deadline = time.monotonic() + SETTLE_S
    while (extra := Trace.of_now(scope).beyond(before)) and time.monotonic() < deadline:
        time.sleep(0.05)  # the kernel tells nobody when the last of it is gone
    assert not extra, "left behind: " + "; ".join(named(kind, items) for kind, items in extra.items())
