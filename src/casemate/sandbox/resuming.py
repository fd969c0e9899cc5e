"""From what is stored of a sandbox to a running machine again, and to a suspended one that this daemon has found."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import anyio
import structlog

from casemate import errors
from casemate.audit import EventKind
from casemate.host import own
from casemate.sandbox.admission import Amount
from casemate.sandbox.boot import Boot
from casemate.sandbox.handle import Handle
from casemate.sandbox.handshake import Introduction
from casemate.sandbox.link import Link
from casemate.sandbox.plan import Step
from casemate.sandbox.seal import Seal
from casemate.sandbox.snapshot import Snapshot
from casemate.sandbox.spec import SandboxInfo, SandboxSpec
from casemate.sandbox.starting import Starter, copy_where_there_is_room, introduce, ours
from casemate.sandbox.states import Action, State
from casemate.sandbox.suspended import Suspended, check_parts

log = structlog.get_logger()
FindBase = Callable[[str], Awaitable[Snapshot]]
"""The snapshot of that id, whole and this host's own. Raises NotFound, ImageBroken, SealBroken."""


@dataclass(frozen=True, slots=True)
class Resumer:
    """How the suspended sandboxes of one daemon are run again."""

    starter: Starter
    seal: Seal
    find_base: FindBase

    def adopt_plan(self) -> tuple[Step[Boot], ...]:
        """The life of one that is on the disk already."""
        return (
            Step("adopt-reserve", self._take_disk, undo="release-reservation"),
            Step("adopt-record", self.starter.record_end, undo="record-end"),
            Step("adopt-folder", self.starter.known_folder, undo="remove-folder"),
        )

    def resume_plan(self) -> tuple[Step[Boot], ...]:
        return (
            Step("resume-reserve", self._reserve_memory, undo="release-memory"),
            Step("resume-record", self._record_resume, undo="resume-over"),
            Step("resume-check", self._check),
            Step("resume-disk", self._copy_disk),
            Step("resume-machine", self._restore_suspended, undo="kill-resumed"),
            Step("resume-attest", self.starter.attest),
            Step("resume-link", self._connect_again, undo="close-resumed-link"),
            Step("resume-unpause", self.starter.unpause),
            Step("resume-handshake", self._introduce_again),
            Step("resume-ping", self.starter.ping),
            Step("resume-run", self._run_again, undo="terminate-resumed"),
        )

    @asynccontextmanager
    async def _take_disk(self, boot: Boot) -> AsyncIterator[None]:
        info = boot.handle.info
        amount = self.starter.admission.amount(info.snapshot, info.memory_mib, info.disk_mib)
        async with self.starter.admission.taken_for(info.tenant, Amount(0, amount.disk_mib)) as boot._reservation:
            yield

    @asynccontextmanager
    async def _reserve_memory(self, boot: Boot) -> AsyncIterator[None]:
        info = boot.handle.info
        amount = self.starter.admission.amount(info.snapshot, info.memory_mib, info.disk_mib)
        await boot.reservation.take_memory(amount.memory_mib)

        async def give_back() -> None:
            boot.reservation.give_back_memory()

        async with own(f"the memory of sandbox {boot.id}", give_back):
            yield

    @asynccontextmanager
    async def _record_resume(self, boot: Boot) -> AsyncIterator[None]:
        """On record before anything is made; and that it has failed, if it has: then it is suspended as before."""
        handle = boot.handle
        boot.sealed, boot.born = False, time.perf_counter()
        await self.starter.records.edge(handle, Action.RESUME, EventKind.SANDBOX_RESUME)
        try:
            yield
        except BaseException as error:
            if handle.info.state is State.RESUMING:
                boot.sealed = True
                with anyio.CancelScope(shield=True), anyio.move_on_after(10):
                    await self._resume_failed(handle, ours(error) or error)
            raise

    async def _resume_failed(self, handle: Handle, error: BaseException) -> None:
        detail = {"message": str(error)[:500]}
        try:
            await self.starter.records.edge(handle, Action.RESUME_FAILED, EventKind.SANDBOX_RESUME_FAILED, detail)
        except (errors.HostError, errors.CapacityError) as refused:
            log.error("a resume that failed could not be recorded", sandbox=handle.info.id, error=str(refused))

    @asynccontextmanager
    async def _check(self, boot: Boot) -> AsyncIterator[None]:
        """Before a VMM gets anything: it is all ours, as it was stored, and stands on what it stood on."""
        found = boot.found = await anyio.to_thread.run_sync(Suspended.read, boot.place.folder)
        if (found.id, found.tenant) != (boot.id, boot.handle.info.tenant):
            raise errors.SealBroken(f"sandbox {boot.id}: what is stored in its folder is another's")
        found.check(self.seal)
        boot._snapshot = await self.find_base(found.snapshot)
        if boot.snapshot.digests.get("memory") != found.base:
            raise errors.ImageBroken(
                f"sandbox {boot.id}: snapshot {found.snapshot} is not the one it was restored from",
                hint="casemate resume --cold boots it from its disk",
            )
        await anyio.to_thread.run_sync(check_parts, boot.place, found)
        yield

    @asynccontextmanager
    async def _copy_disk(self, boot: Boot) -> AsyncIterator[None]:
        """A copy: until it runs again, what is stored stays as it is."""
        disk = boot.place.disk
        await anyio.to_thread.run_sync(partial(disk.unlink, missing_ok=True))
        await anyio.to_thread.run_sync(copy_where_there_is_room, boot.place.kept / "disk", disk)
        yield

    @asynccontextmanager
    async def _restore_suspended(self, boot: Boot) -> AsyncIterator[None]:
        assert boot.found is not None, "check comes first"
        spec = boot.snapshot.machine(boot.id, boot.place.disk)
        restored = self.starter.driver.restore(
            spec,
            boot.place.files(boot.snapshot),
            difference=boot.place.kept / "difference",
            vmm_sha256=boot.found.platform.vmm_sha256,
        )
        async with restored as boot._machine:
            yield

    @asynccontextmanager
    async def _connect_again(self, boot: Boot) -> AsyncIterator[None]:
        """The conversation goes on where it stopped. With a new daemon it begins anew, and so it does after a failure:
        what was said to a machine that is gone cannot be unsaid."""
        if boot._link is None:
            boot._link = Link(boot.id, silence_s=self.starter.agent_timeout_s)
            boot.link.begin(reopened=True)
        try:
            async with self.starter.carried(boot):
                yield
        finally:
            if boot.handle.info.state is State.RESUMING:
                boot.link.close()
                boot._link = None

    @asynccontextmanager
    async def _introduce_again(self, boot: Boot) -> AsyncIterator[None]:
        await introduce(boot.link, Introduction(boot.id, fresh=False), self.starter.agent_timeout_s)
        yield

    @asynccontextmanager
    async def _run_again(self, boot: Boot) -> AsyncIterator[None]:
        """It runs, and that is on record; from the moment on that what was stored is dropped there is no way back."""
        handle, machine = boot.handle, boot.machine
        async with self.starter.running(boot):
            await anyio.to_thread.run_sync(boot.place.drop)
            pid = {"pid": machine.pid}
            changes = {"pid": machine.pid, "attestation": boot.attestation, "suspended": None}
            async with own(f"the record of sandbox {boot.id}", partial(self.starter.terminate, boot), limit_s=10.0):
                await self.starter.records.edge(handle, Action.RESUMED, EventKind.SANDBOX_RESUMED, pid, **changes)
                handle.touch()
                yield


def adopted(info: SandboxInfo, folders: Path) -> Handle:
    """A handle of one that an earlier daemon suspended. Blocks, briefly."""
    try:
        spec = Suspended.read(folders / info.id).user_spec()
    except (errors.ImageBroken, errors.InvalidSpec, errors.NotSupported):  # a resume says what is wrong with it
        spec = SandboxSpec(image=info.image, max_duration_s=info.max_duration_s)
    handle = Handle(info, spec)
    handle.born_ago(time.time() - info.created_at)
    return handle
