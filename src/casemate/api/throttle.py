"""How often one source may fail: a bucket that holds a few failures and empties slowly."""

from __future__ import annotations

import time
from collections import OrderedDict

BURST = 10
EVERY_S = 6.0  # after a burst, one more each so often
MAX_SOURCES = 4096  # the one that failed longest ago is forgotten first


class Throttle:
    def __init__(self, *, burst: int = BURST, every_s: float = EVERY_S) -> None:
        self._burst = burst
        self._every_s = every_s
        self._full_until: OrderedDict[str, float] = OrderedDict()

    def wait_s(self, source: str) -> float:
        """Count one failure; 0 while it is within what is allowed, else when the next one would be."""
        now = time.monotonic()
        empty_at = max(self._full_until.pop(source, now), now) + self._every_s
        over_s = empty_at - now - self._burst * self._every_s
        if over_s > 0:
            empty_at -= self._every_s  # a refused try does not lengthen the wait
        self._full_until[source] = empty_at
        while len(self._full_until) > MAX_SOURCES:
            self._full_until.popitem(last=False)
        return max(over_s, 0.0)
