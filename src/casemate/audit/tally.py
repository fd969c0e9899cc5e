"""What happens often, as few events: the first of each kind at once, the rest as one count per window.

    note note note note … ──> event {count: 1}  … window ends … ──> event {count: n, since}

So that nobody fills the disk: a window has at most two events for each of ``MAX_SUBJECTS`` subjects, and two for
all others together.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import anyio
import structlog

from casemate.audit.events import EventKind
from casemate.audit.trail import Trail
from casemate.errors import HostError

log = structlog.get_logger()
WINDOW_S = 600.0
MAX_SUBJECTS = 64
OTHERS = "others"


@dataclass(slots=True)
class _Count:
    detail: Mapping[str, Any]
    since: float = field(default_factory=time.time)
    count: int = 0


class Tally:
    def __init__(self, trail: Trail, kind: EventKind, *, window_s: float = WINDOW_S) -> None:
        self._trail = trail
        self._kind = kind
        self._window_s = window_s
        self._counts: dict[tuple[str, str, str], _Count] = {}

    async def note(self, *, tenant: str, actor: str, subject: str, detail: Mapping[str, Any]) -> None:
        """Count one; when it is the first of its kind in this window it is recorded before this returns."""
        key = tenant, actor, subject
        if key not in self._counts and len(self._counts) >= MAX_SUBJECTS:
            key, detail = ("system", "host", OTHERS), {}
        known = self._counts.get(key)
        if known is not None:
            known.count += 1
            return
        first = self._counts[key] = _Count(detail)
        try:
            await self._record(key, {**detail, "count": 1})
        except HostError:
            first.count = 1  # the disk may be full; at the end of the window it is tried again
            raise

    async def flush(self) -> None:
        """End the window: record what was counted in it."""
        for key, counted in list(self._counts.items()):
            if counted.count:
                counted.count, said = 0, counted.count
                try:
                    await self._record(key, {**counted.detail, "count": said, "since": counted.since})
                except HostError:
                    counted.count += said
                    raise
            if not counted.count:  # nothing was noted meanwhile
                self._counts.pop(key, None)

    async def run(self) -> None:
        """Until cancelled; what is counted by then is recorded still."""
        try:
            while True:
                await anyio.sleep(self._window_s)
                try:
                    await self.flush()
                except HostError as error:
                    log.error("authentications could not be recorded; trying again later", error=str(error))
        finally:
            with anyio.CancelScope(shield=True), anyio.move_on_after(5):
                await self.flush()

    async def _record(self, key: tuple[str, str, str], detail: Mapping[str, Any]) -> None:
        tenant, actor, subject = key
        await self._trail.record(self._kind, tenant=tenant, actor=actor, subject=subject, detail=detail)
