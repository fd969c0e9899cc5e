"""How a resting sandbox looks from outside: its VMM's process, and what the daemon says."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from tests.fair import fair_clock

from casemate.sdk import Sandbox

WITHIN_S = 60.0
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
CLOCKS = "import time as t; [t.clock_gettime(c) for c in (t.CLOCK_REALTIME, t.CLOCK_MONOTONIC, t.CLOCK_BOOTTIME)]"


def _stat(sandbox: Sandbox) -> list[str]:
    return Path(f"/proc/{sandbox.info.pid}/stat").read_text().rpartition(")")[2].split()


def is_frozen(sandbox: Sandbox) -> bool:
    """By the kernel's word. Source: proc_pid_stat(5)"""
    return _stat(sandbox)[0] == "T"


def cpu_s(sandbox: Sandbox) -> float:
    return sum(map(int, _stat(sandbox)[11:13])) / TICKS_PER_S


def is_parked(sandbox: Sandbox) -> bool:
    return sandbox.refresh().parked


def wait_until(condition: Callable[[], object], within_s: float = WITHIN_S) -> None:
    deadline = fair_clock() + within_s
    while not condition():
        assert fair_clock() < deadline
        time.sleep(0.02)


def wait_parked(sandbox: Sandbox, within_s: float = WITHIN_S) -> None:
    wait_until(lambda: is_parked(sandbox), within_s)
    wait_until(lambda: is_frozen(sandbox), 2)  # the signal is sent; a busy host takes a moment to stop all threads


def never(condition: Callable[[], object], for_s: float) -> None:
    ends_at = time.monotonic() + for_s
    while time.monotonic() < ends_at:
        assert not condition()
        time.sleep(0.05)


def clocks(sandbox: Sandbox) -> list[float]:
    """The guest's, all three, beside the host's wall clock and monotonic one at the middle of the question."""
    before = time.time(), time.monotonic()
    text = sandbox.run_code(CLOCKS).text
    after = time.time(), time.monotonic()
    assert text is not None
    return [(a + b) / 2 for a, b in zip(before, after, strict=True)] + [float(word) for word in text[1:-1].split(",")]
