"""Fixtures for every test, and the check that a test leaves no trace on the host.

The ladder for real machines (``tests/vm/conftest.py``):  home → daemon → sandbox.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import hypothesis
import pytest
from tests.traces import Scope, Trace, named, own_scope

hypothesis.settings.register_profile("any machine", deadline=None)  # how long an example takes proves nothing here
hypothesis.settings.load_profile("any machine")
SETTLE_S = 5.0  # a process that was told to end may take a moment; longer is a leak


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
