"""One zygote per module and Python: CASEMATE_TEST_PYTHONS names more of them, separated by colons."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from context_bench import ContextBench
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


@pytest.fixture(scope="module")
def shared_context(bench: Bench) -> Iterator[ContextBench]:
    """One Python context for the tests of a module that leave it well."""
    context = ContextBench(bench)
    assert context.ready["event"] == "ready"
    yield context
    context.kill()


@pytest.fixture
def fresh_context(bench: Bench) -> Iterator[ContextBench]:
    context = ContextBench(bench)
    yield context
    context.kill()


def need(bench: Bench, module: str) -> None:
    """Skip where the Python at hand has no *module*; CASEMATE_TEST_PYTHONS may name one that has."""
    version = str(bench.zygote.about["modules"][module])
    if "missing" in version:
        pytest.skip(f"{bench.python} has no {module}")


@pytest.fixture
def pandas(bench: Bench) -> None:
    need(bench, "pandas")


@pytest.fixture
def matplotlib(bench: Bench) -> None:
    need(bench, "matplotlib.pyplot")


@pytest.fixture
def ipython(bench: Bench) -> None:
    need(bench, "IPython")
