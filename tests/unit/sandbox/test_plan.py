"""A plan is carried out in order, undone in reverse, from wherever it got to; and faults hit where they say."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import anyio
import pytest

from casemate.errors import HostError, HostFull, InvalidSpec
from casemate.sandbox.faults import parse_fault
from casemate.sandbox.plan import Moment, Step, carried_out, undone

Log = list[str]


def step(name: str, undo: str | None = None, fails: Exception | None = None) -> Step[Log]:
    @asynccontextmanager
    async def act(log: Log) -> AsyncIterator[None]:
        if fails:
            raise fails
        log.append(name)
        try:
            yield
        finally:
            if undo:
                log.append(undo)

    opened: Callable[[Log], AbstractAsyncContextManager[None]] = act
    return Step(name, opened, undo)


PLAN = (step("a", "un-a"), step("b"), step("c", "un-c"))


def carry_out(plan: tuple[Step[Log], ...]) -> tuple[Log, Log]:
    log, passed = Log(), Log()

    def reach(name: str, moment: Moment) -> None:
        passed.append(f"{moment} {name}")

    async def main() -> None:
        async with carried_out(plan, log, reach):
            log.append("there")

    try:
        anyio.run(main)
    except HostError as error:
        log.append(error.code)
    except HostFull as error:
        log.append(error.code)
    return log, passed


def test_it_reads_down_and_up() -> None:
    log, passed = carry_out(PLAN)
    assert log == ["a", "b", "c", "there", "un-c", "un-a"]
    boot = [f"{moment} {name}" for name in "abc" for moment in ("enter", "done")]
    assert passed == [*boot, *(f"{moment} {name}" for name in undone(PLAN) for moment in ("enter", "done"))]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OSError(errno.ENOSPC, "no"), "host-full"),
        (OSError(errno.EDQUOT, "no"), "host-full"),
        (OSError(5, "io"), "host-error"),
    ],
)
def test_failing_half_way_it_undoes_what_was_done(error: OSError, code: str) -> None:
    log, passed = carry_out((*PLAN, step("d", "un-d", error)))
    assert log == ["a", "b", "c", "un-c", "un-a", code]
    assert "done d" not in passed
    assert "enter un-d" not in passed


@pytest.mark.parametrize(
    "text",
    [
        "kill",
        "kill:",
        "halt:a",
        "stop:*a",
        "stop:a:1",
        "kill:a*",
        "kill:a:b",
        "kill:a:done:1",
        "kill:A",
        "kill:a:999999",
    ],
)
def test_a_fault_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InvalidSpec):
        parse_fault(text)


@pytest.mark.parametrize(
    ("fault", "reached", "stops"),
    [
        ("stop:a", ("a", "enter"), True),
        ("stop:a", ("ab", "enter"), False),
        ("stop:a-*", ("a-b", "enter"), True),
        ("stop:a-*", ("a-b", "done"), False),
        ("stop:a-*:done", ("a-b", "done"), True),
    ],
)
def test_it_stops_where_it_says(fault: str, reached: tuple[str, str], stops: bool) -> None:
    code = f"from casemate.sandbox import parse_fault; parse_fault({fault!r}){reached!r}"
    process = subprocess.Popen([sys.executable, "-c", code])
    try:
        assert os.WIFSTOPPED(os.waitpid(process.pid, os.WUNTRACED)[1]) is stops
    finally:
        process.kill()
        process.wait()


def test_without_one_nothing_happens() -> None:
    for text in (None, ""):
        parse_fault(text)("any", "enter")


@pytest.mark.parametrize(
    ("fault", "reached", "dies"),
    [
        ("kill:a", ("a", "enter"), True),
        ("kill:a", ("a", "done"), False),
        ("kill:a:done", ("a", "done"), True),
        ("kill:a:done", ("a", "enter"), False),
        ("kill:a:20", ("a", "enter"), True),
        ("kill:a", ("b", "enter"), False),
    ],
)
def test_it_kills_where_it_says(fault: str, reached: tuple[str, str], dies: bool) -> None:
    code = f"import time; from casemate.sandbox import parse_fault; parse_fault({fault!r}){reached!r}; time.sleep(0.3)"
    assert subprocess.run([sys.executable, "-c", code], timeout=20, check=False).returncode == (-9 if dies else 0)
