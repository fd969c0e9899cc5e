"""What is written down about a sandbox, and when: its folder's record, its row in the index, the audit."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import anyio
import structlog
from sqlalchemy import Connection

from casemate import errors
from casemate.audit import EventKind, Trail
from casemate.sandbox.handle import Handle
from casemate.sandbox.index import Index
from casemate.sandbox.meta import write_meta
from casemate.sandbox.plan import refusals_named
from casemate.sandbox.spec import SandboxInfo
from casemate.sandbox.states import Action

log = structlog.get_logger()
Along = Callable[[Connection], object]
Tell = Callable[[Along], Awaitable[None]]  # an event, and the row that changes with it


@dataclass(frozen=True, slots=True)
class Records:
    """One daemon's. Raises HostFull or HostError for what the disk refuses."""

    index: Index
    trail: Trail
    folders: Path  # sandboxes/
    unrecorded: dict[str, SandboxInfo] = field(default_factory=dict)  # ends that a full disk refused to take down

    async def intend(self, handle: Handle) -> None:
        """Write down that it will be made, after the ends whose names are taken until then."""
        await self.catch_up()
        info = handle.info
        detail = {"image": info.image, "name": info.name}
        await self.tell(EventKind.SANDBOX_CREATE, handle, detail, along=self.index.putting(info))

    async def catch_up(self) -> None:
        """Write down the ends that could not be when they came: their names are taken until then."""
        for info in list(self.unrecorded.values()):
            await self.index.put(info)
            self.unrecorded.pop(info.id, None)

    async def tell(
        self, kind: EventKind, handle: Handle, detail: Mapping[str, object], along: Along | None = None
    ) -> None:
        """One event in the audit, and in the same transaction what goes *along* with it."""
        info = handle.info
        await self.trail.record(
            kind, tenant=info.tenant, subject=info.id, actor=handle.actor, detail=detail, along=along
        )

    async def edge(
        self,
        handle: Handle,
        action: Action,
        kind: EventKind | None = None,
        detail: Mapping[str, object] | None = None,
        *,
        durable: bool = True,
        **changes: object,
    ) -> None:
        """One step of the life: the info changes, then the folder's record and the index follow, with the event."""
        handle.move(action, **changes)
        tell = None if kind is None else self._telling(kind, handle, detail or {})
        await self.write(handle, tell, durable=durable)

    def _telling(self, kind: EventKind, handle: Handle, detail: Mapping[str, object]) -> Tell:
        async def tell(along: Along) -> None:
            await self.tell(kind, handle, detail, along)

        return tell

    async def write(self, handle: Handle, tell: Tell | None = None, *, durable: bool = True) -> None:
        """What it is by now; one at a time, so that an older state never comes after a newer one."""
        async with handle._recording:
            info = handle.info
            with refusals_named(f"the record of sandbox {info.id}"):
                write = partial(write_meta, self.folders / info.id, info, durable=durable)
                await anyio.to_thread.run_sync(write)
            if tell is None:
                await self.index.put(info)
            else:
                await tell(self.index.putting(info))

    async def end(self, handle: Handle, failure: errors.CasemateError | None) -> None:
        """Nothing of it is left. A disk that refuses the record does not keep the sandbox alive."""
        reason = handle.info.state_reason
        detail = {"reason": reason.code, "message": reason.message} if reason else {}
        try:
            if isinstance(failure, errors.ProtocolViolation):
                await self.tell(EventKind.PROTOCOL_VIOLATION, handle, {"message": failure.message})
            await self.tell(EventKind.SANDBOX_TERMINATED, handle, detail, along=self.index.putting(handle.info))
        except (errors.HostError, errors.CapacityError) as error:
            log.error("the end of a sandbox could not be recorded", sandbox=handle.info.id, error=str(error), **detail)
            self.unrecorded[handle.info.id] = handle.info
