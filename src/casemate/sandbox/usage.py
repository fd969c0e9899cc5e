"""Who uses one sandbox, as far as the host sees it: calls under way, bytes that come and go, what was promised."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Usage:
    """Times are of the monotonic clock."""

    def __init__(self) -> None:
        self.connections = 0  # to its ports, silent or not: while there is one it is not parked
        self._busy = 0
        self._touched_at = time.monotonic()
        self._kept_until = self._touched_at

    @property
    def used_at(self) -> float:
        """When it was in use last: now, while a call is under way or it is kept alive."""
        now = time.monotonic()
        return now if self._busy else max(self._touched_at, min(self._kept_until, now))

    @property
    def is_busy(self) -> bool:
        return self._busy > 0

    def touch(self) -> None:
        """Somebody said something to it, or it to somebody."""
        self._touched_at = time.monotonic()

    def keep(self, for_s: float) -> None:
        """It counts as in use for so long; never for less long than was promised before."""
        self._kept_until = max(self._kept_until, time.monotonic() + for_s)

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Work is under way: it is in use until the block ends."""
        self._busy += 1
        try:
            yield
        finally:
            self._busy -= 1
            self.touch()

    @contextmanager
    def looking_on(self) -> Iterator[None]:
        """Within ``busy``: for this block it is not in use by it, except when something is said (``touch``)."""
        self._busy -= 1
        self.touch()
        try:
            yield
        finally:
            self._busy += 1

    @contextmanager
    def connected(self) -> Iterator[None]:
        """Somebody holds a connection to a port of it."""
        self.connections += 1
        try:
            yield
        finally:
            self.connections -= 1
            self.touch()
