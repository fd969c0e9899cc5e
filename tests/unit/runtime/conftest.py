"""One zygote per module and Python: CASEMATE_TEST_PYTHONS names more of them, separated by colons."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from zygote_bench import Bench

_PR_SET_CHILD_SUBREAPER = 36


def _pythons() -> list[str]:
    more = [path for path in os.environ.get("CASEMATE_TEST_PYTHONS", "").split(":") if path]
    return [str(Path(sys.base_prefix) / "bin" / "python3"), *more]


@pytest.fixture(scope="module", autouse=True)
def subreaper() -> Iterator[None]:
    """Orphans come to this process, as they come to PID 1 in the guest."""
    prctl = ctypes.CDLL(None).prctl
    assert prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
    yield
    prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


@pytest.fixture(scope="module", params=_pythons())
def bench(request: pytest.FixtureRequest, subreaper: None) -> Iterator[Bench]:
    bench = Bench(request.param)
    yield bench
    bench.close()
