"""Before a create is refused: who has nothing to do, and may be suspended for that, makes room (Relief.SUSPEND_IDLE).

Parked is what counts as nothing to do: its guest has said so, and nobody has called since. Only memory is given
back. A call to one of them resumes it, if there is room again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import structlog
from anyio.abc import TaskGroup

from casemate import errors
from casemate.sandbox.admission import Admission, Amount
from casemate.sandbox.handle import Handle

log = structlog.get_logger()


class IdleSuspender:
    def __init__(self, live: Callable[[], Iterable[Handle]], admission: Admission, tasks: TaskGroup) -> None:
        self._live = live
        self._admission = admission
        self._tasks = tasks
        self._under_way: dict[str, int] = {}  # id → MiB

    def __call__(self, missing: Amount) -> Amount:
        """Begin to suspend as many as it takes, the longest unused first; how much is on its way then."""
        coming_mib = sum(self._under_way.values())
        for handle in sorted(self._idle(), key=lambda handle: handle.usage.used_at):
            if coming_mib >= missing.memory_mib:
                break
            info = handle.info
            self._under_way[info.id] = self._admission.amount(info.snapshot, info.memory_mib, info.disk_mib).memory_mib
            coming_mib += self._under_way[info.id]
            self._tasks.start_soon(self._suspend, handle)
        return Amount(coming_mib, 0)

    def _idle(self) -> list[Handle]:
        return [
            handle
            for handle in self._live()
            if handle.parked and handle.spec.on_idle == "suspend" and handle.info.id not in self._under_way
        ]

    async def _suspend(self, handle: Handle) -> None:
        try:
            if handle.parked:
                await handle.suspend("relief", if_unused=True)
        except errors.CasemateError as error:
            log.warning("a sandbox could not be suspended to make room", sandbox=handle.info.id, error=str(error))
        finally:
            del self._under_way[handle.info.id]
