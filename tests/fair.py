"""A clock for tests that hold the code to a limit in seconds, on machines that others use as well.

It goes as the monotonic one while this process gets the processor when it wants it, and slower while it has to wait
for it: a limit so is one of the code's, and a machine that stands still for seconds breaks no promise of ours.
"""

from __future__ import annotations

import threading
import time

TICK_S = 0.02
MOST_S = 0.03  # what a tick counts at most: one that took longer had to wait


class _Clock:
    def __init__(self) -> None:
        self._lived_s = 0.0
        self._begun = threading.Lock()
        self._runs = False

    def now(self) -> float:
        with self._begun:
            if not self._runs:
                threading.Thread(target=self._tick, name="fair clock", daemon=True).start()
                self._runs = True
        return self._lived_s

    def _tick(self) -> None:
        before = time.monotonic()
        while True:
            time.sleep(TICK_S)
            now = time.monotonic()
            self._lived_s += min(now - before, MOST_S)
            before = now


_clock = _Clock()


def fair_clock() -> float:
    """Seconds, in steps of TICK_S; from a point of its own."""
    return _clock.now()
