"""What rests and comes back: parked and woken, suspended and resumed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from casemate.bench.acts import timed
from casemate.bench.floor import Floor
from casemate.bench.rows import Samples, percentile, row
from casemate.errors import CasemateError, GuestError
from casemate.sdk import Client, Sandbox, SuspendedFacts

PARK_AFTER_S = 0.2
PARKED_WITHIN_S = 30.0
MORE_BYTES = 16 << 20  # what a suspend has to store is told beside what it took; with more of it the slope shows
Tell = Callable[[str], None]


@dataclass
class Stored:
    """What the suspends of a run said of themselves."""

    facts: list[SuspendedFacts] = field(default_factory=list)

    def told(self) -> dict[str, float | None]:
        dirty_mb = percentile([found.dirty_bytes / 1e6 for found in self.facts], 0.5)
        return {
            "pause_ms_p50": _rounded(percentile([found.pause_ms for found in self.facts], 0.5)),
            "took_ms_p50": _rounded(percentile([found.took_ms for found in self.facts], 0.5)),
            "dirty_mb_p50": _rounded(dirty_mb),
            "stored_by_changed": _rounded(percentile([found.ratio or 0.0 for found in self.facts], 0.5)),
        }


def rest_rows(client: Client, floor: Floor, n: int, tell: Tell) -> list[dict[str, Any]]:
    """*n* wakes, *n* suspends and resumes of one sandbox, and as many of one with 16 MiB more that it wrote."""
    return [
        _wakes(client, floor, n, tell),
        *_suspends(client, floor, n, tell),
        *_suspends(client, floor, n, tell, "_16mib_more", MORE_BYTES),
    ]


def _wakes(client: Client, floor: Floor, n: int, tell: Tell) -> dict[str, Any]:
    woken, awake, beneath = Samples(), Samples(), Samples()
    with _sandbox(client, PARK_AFTER_S) as sandbox, _sandbox(client, None) as other:
        for number in range(n):
            tell(f"wake_to_first_exec {number + 1}/{n}")
            _sample(woken, lambda: _until_parked(sandbox), lambda: _true(sandbox))
            _sample(awake, _at_once, lambda: _true(other))
            floor.measure("exec_roundtrip", beneath)
    found = row("wake_to_first_exec", woken, beneath)
    ours = percentile(awake.ms, 0.5)
    more = {"exec_roundtrip_p50_ms": _rounded(ours)}
    if found["p50_ms"] is not None and ours is not None:
        more["added_ms"] = _rounded(found["p50_ms"] - ours)
    return found | more


def _suspends(
    client: Client, floor: Floor, n: int, tell: Tell, name: str = "", more_bytes: int = 0
) -> list[dict[str, Any]]:
    """The suspend is timed at its client; the resume is the one that a call to a suspended sandbox waits for."""
    suspends, resumes, beneath, stored = Samples(), Samples(), Samples(), Stored()
    with _sandbox(client, None) as sandbox:
        if more_bytes:
            sandbox.run_code(f"import os; kept = bytearray(os.urandom({more_bytes}))")
        for number in range(n):
            tell(f"suspend{name} {number + 1}/{n}")
            _sample(suspends, _at_once, lambda: stored.facts.append(sandbox.suspend()))
            _sample(resumes, _at_once, lambda: _true(sandbox))
            floor.measure("create_to_first_exec", beneath)
    return [
        row(f"suspend{name}", suspends, Samples(), **stored.told()),
        row(f"resume_to_first_exec{name}", resumes, beneath),
    ]


@contextmanager
def _sandbox(client: Client, park_after_s: float | None) -> Iterator[Sandbox]:
    """A warm one: its first exec and cell are behind it."""
    with Sandbox.create(client=client, idle_timeout_s=None, park_after_s=park_after_s) as sandbox:
        _true(sandbox)
        sandbox.run_code("1 + 1")
        yield sandbox


def _true(sandbox: Sandbox) -> None:
    sandbox.commands.run(["/bin/true"], check=True)


def _at_once() -> None:
    """Nothing has to be waited for."""


def _until_parked(sandbox: Sandbox) -> None:
    deadline = time.monotonic() + PARKED_WITHIN_S
    while not sandbox.refresh().parked:
        if time.monotonic() > deadline:
            raise GuestError(f"sandbox {sandbox.id} was not parked within {PARKED_WITHIN_S:g} s")
        time.sleep(0.02)


def _sample(into: Samples, prepare: Callable[[], None], act: Callable[[], object]) -> None:
    try:
        prepare()
        into.ms.append(timed(act))
    except CasemateError as error:
        into.errors.append(f"{error.code}: {error.message}")


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)
