"""The index of names and history, in a sandbox's own terms; storage knows only rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from sqlalchemy import Connection

from casemate.sandbox.spec import SandboxInfo
from casemate.storage import Database, SandboxRow, sandboxes


@dataclass(frozen=True, slots=True)
class Index:
    database: Database
    host_id: str

    async def put(self, info: SandboxInfo) -> None:
        """Raises StateConflict when another live sandbox of the tenant has its name."""
        await self.database.write(self.putting(info))

    def putting(self, info: SandboxInfo) -> Callable[[Connection], None]:
        """The same as an act, to be one with another in a transaction."""
        return partial(sandboxes.put, row=self._row(info))

    def claiming(self, info: SandboxInfo) -> Callable[[Connection], None]:
        """The same for a pool's member that becomes somebody's; raises StateConflict unless it is ready."""
        return partial(sandboxes.claim, row=self._row(info))

    async def listed(self, tenant: str) -> list[SandboxInfo]:
        """Everything of a tenant that is remembered, oldest first."""
        rows = await self.database.read(sandboxes.listed, tenant, all=True)
        return [SandboxInfo.from_json(row.info) for row in rows]

    async def unfinished(self) -> list[SandboxInfo]:
        """Every tenant's that no end was recorded of."""
        return [SandboxInfo.from_json(row.info) for row in await self.database.read(sandboxes.live)]

    async def forget(self, before: float) -> int:
        return await self.database.write(sandboxes.forget_terminated, before)

    def _row(self, info: SandboxInfo) -> SandboxRow:
        return SandboxRow(
            id=info.id,
            tenant=info.tenant,
            host_id=self.host_id,
            name=info.name,
            image=info.image,
            snapshot_id=info.snapshot,
            state=info.state.value,
            info=info.to_json(),
            created_at=info.created_at,
            updated_at=info.updated_at,
        )
