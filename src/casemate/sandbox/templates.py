"""What forks stand on: ``snapshots/<id>/`` of the kind ``fork``, each for as long as a sandbox stands on it.

Written by ``copying`` for a fork; read by every copy's supervisor, and again when one is resumed; deleted, and its disk
given back, when the last sandbox that stands on it has ended: running, suspended, or found suspended by a later daemon.
Each has a task of its own, which opens and closes it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import anyio
import structlog
from anyio.abc import TaskGroup, TaskStatus

from casemate.errors import LeakedResource
from casemate.host import own, remove_folder
from casemate.sandbox.admission import Admission, Amount, Reservation
from casemate.sandbox.copying import BUILDING, stored_amount
from casemate.sandbox.snapshot import kind_said
from casemate.sandbox.spec import SandboxInfo

log = structlog.get_logger()


@dataclass(eq=False)
class Template:
    """One of them. *users*: the ids of sandboxes, and of forks under way."""

    id: str
    tenant: str
    users: set[str] = field(default_factory=set)
    unused: asyncio.Event = field(default_factory=asyncio.Event)
    reservation: Reservation | None = None


class Templates:
    """Those of one daemon; their tasks live in *tasks*."""

    def __init__(self, snapshots: Path, admission: Admission, tasks: TaskGroup) -> None:
        self._snapshots = snapshots
        self._admission = admission
        self._tasks = tasks
        self._known: dict[str, Template] = {}

    def is_used(self, snapshot_id: str) -> bool:
        """Whether a sandbox stands on it, or is about to."""
        return snapshot_id in self._known

    async def load(self, suspended: Iterable[SandboxInfo]) -> None:
        """What the *suspended* ones stand on is kept; what nobody stands on any more is removed."""
        users: dict[str, set[str]] = {}
        tenants: dict[str, str] = {}
        for info in suspended:
            users.setdefault(info.snapshot, set()).add(info.id)
            tenants[info.snapshot] = info.tenant
        for folder in await anyio.to_thread.run_sync(self._folders):
            if folder.name in users:
                template = Template(folder.name, tenants[folder.name], users[folder.name])
                amount = await anyio.to_thread.run_sync(stored_amount, folder)
                await self._tasks.start(self._keep, template, amount, True)
            else:
                log.info("nobody stands on what a fork has left", snapshot=folder.name)
                await anyio.to_thread.run_sync(_remove_folder, folder)

    def _folders(self) -> list[Path]:
        found = sorted(self._snapshots.iterdir()) if self._snapshots.is_dir() else []
        return [folder for folder in found if not folder.name.startswith(".") and kind_said(folder) == "fork"]

    @asynccontextmanager
    async def being_made(self, snapshot_id: str, tenant: str, amount: Amount) -> AsyncIterator[Template]:
        """Room for a new one, *amount* at most, for a block; what nobody stands on at its end is removed then.

        Raises HostFull when there is no room for it.
        """
        template = Template(snapshot_id, tenant, {snapshot_id})
        await self._tasks.start(self._keep, template, amount, False)
        try:
            yield template
        finally:
            self.let_go(snapshot_id, snapshot_id)

    def measured(self, template: Template, amount: Amount) -> None:
        """It is made, and takes no more than that."""
        assert template.reservation is not None, "it has room"
        template.reservation.shrink(amount)

    def hold(self, snapshot_id: str, user: str) -> None:
        """*user* stands on it from here on; on another snapshot than a fork's too, to no effect."""
        if template := self._known.get(snapshot_id):
            template.users.add(user)

    def let_go(self, snapshot_id: str, user: str) -> None:
        if template := self._known.get(snapshot_id):
            template.users.discard(user)
            if not template.users:
                template.unused.set()

    async def _keep(self, template: Template, amount: Amount, there: bool, *, task_status: TaskStatus[None]) -> None:
        """*there*: it takes its room already, whether there is any or not."""
        reserved = (self._admission.taken_for if there else self._admission.reserved_for)(template.tenant, amount)
        try:
            owned = own(f"snapshot {template.id}", partial(self._remove, template), limit_s=20.0)
            async with reserved as template.reservation, owned:
                self._known[template.id] = template
                task_status.started()
                await template.unused.wait()
        except LeakedResource as error:  # it is nobody's any more; the sandboxes of this daemon run on
            log.error("what a fork has left could not be removed", snapshot=template.id, error=str(error))
        finally:
            self._known.pop(template.id, None)

    async def _remove(self, template: Template) -> None:
        """Not at the end of a daemon, when suspended sandboxes stand on it."""
        if not template.users:
            self._admission.forget(template.id)
            await anyio.to_thread.run_sync(_remove_folder, self._snapshots / template.id)


def _remove_folder(folder: Path) -> None:
    """Under the name of what was never whole first: of half of it nobody could say any more that a fork has left it."""
    dying = folder.with_name(f"{BUILDING}{folder.name}")
    with suppress(FileNotFoundError):  # its fork has failed
        folder.rename(dying)
    remove_folder(dying)
