"""From what is stored of a sandbox to a running machine again, and to a suspended one that this daemon has found."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import anyio
import structlog

from casemate import errors
from casemate.audit import EventKind
from casemate.host import own
from casemate.sandbox.admission import Amount
from casemate.sandbox.boot import Boot
from casemate.sandbox.fitness import Made
from casemate.sandbox.handle import Handle
from casemate.sandbox.handshake import Introduction
from casemate.sandbox.link import Link
from casemate.sandbox.plan import Step
from casemate.sandbox.pool_spec import SHARED
from casemate.sandbox.seal import Seal
from casemate.sandbox.snapshot import WORKING_SET, Snapshot
from casemate.sandbox.spec import SandboxInfo, SandboxSpec
from casemate.sandbox.starting import Starter, copy_where_there_is_room, given_up, introduce, ours
from casemate.sandbox.states import Action, State
from casemate.sandbox.suspended import OWN_MEMORY, Suspended, check_disk, check_parts
from casemate.vmm import Kernel, Platform, SnapshotFiles
from casemate.wire import GENERATION

log = structlog.get_logger()
COLD_HINT = "casemate resume --cold boots it from its disk"
BOOT_S = 60.0
PREPARE_S = 180.0


@dataclass(frozen=True, slots=True)
class Kit:
    """What boots a machine: the kernel, and the read-only disks of today."""

    kernel: Kernel
    kernel_release: str
    root: Path
    agent: Path
    platform: Platform


class Ground(Protocol):
    """What suspended sandboxes stand on."""

    async def check(self, made: Made, what: str) -> None:
        """Raises Unfit, about *what*, with every reason why what was *made* so cannot be restored here."""

    async def snapshot(self, tenant: str, snapshot_id: str) -> Snapshot:
        """Whole, and this host's own. Raises ImageBroken, SealBroken."""

    async def kit(self, owners: Sequence[str], image: str) -> Kit:
        """What boots a machine of that version, of the first of those tenants who has it.

        Raises NotFound, ImageBroken.
        """


@dataclass(frozen=True, slots=True)
class Resumer:
    """How the suspended sandboxes of one daemon are run again."""

    starter: Starter
    seal: Seal
    ground: Ground

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
            Step("resume-turn", self.starter.turn),
            Step("resume-check", self._check),
            Step("resume-disk", self._copy_disk),
            Step("resume-machine", self._restore_suspended, undo="kill-resumed"),
            Step("resume-attest", self.starter.attest),
            Step("resume-unpause", self.starter.unpause),
            Step("resume-link", self._connect_again, undo="close-resumed-link"),
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
            _check_wanted(boot.handle)  # there may have been room only because the daemon stops
            yield

    @asynccontextmanager
    async def _record_resume(self, boot: Boot) -> AsyncIterator[None]:
        """On record before anything is made; and that it has failed, if it has: then it is suspended as before."""
        handle = boot.handle
        boot.sealed, boot.born = False, time.perf_counter()
        try:
            await self.starter.records.edge(handle, Action.RESUME, EventKind.SANDBOX_RESUME)
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
        found = await self._found(boot)
        what = f"sandbox {boot.id}"
        await self.ground.check(found.made, what)
        if found.own_memory is None:
            boot._snapshot = await self.ground.snapshot(found.tenant, found.snapshot)
        else:
            boot._snapshot = found.as_snapshot(boot.place.folder)
        if boot.snapshot.digests["memory"] != found.base:
            raise errors.ImageBroken(
                f"{what}: snapshot {found.snapshot} is not the one it was restored from", hint=COLD_HINT
            )
        boot.own_memory, boot.booted = found.own_memory, False
        await anyio.to_thread.run_sync(check_parts, boot.place, found)
        yield

    async def _found(self, boot: Boot) -> Suspended:
        """The manifest of what is stored. Raises ImageBroken, SealBroken."""
        found = boot.found = await anyio.to_thread.run_sync(Suspended.read, boot.place.folder)
        if (found.id, found.tenant) != (boot.id, boot.handle.info.tenant):
            raise errors.SealBroken(f"sandbox {boot.id}: what is stored in its folder is another's")
        found.check(self.seal)
        return found

    @asynccontextmanager
    async def _copy_disk(self, boot: Boot) -> AsyncIterator[None]:
        """A copy: until it runs again, what is stored stays as it is."""
        disk = boot.place.disk
        await anyio.to_thread.run_sync(partial(disk.unlink, missing_ok=True))
        try:
            await anyio.to_thread.run_sync(copy_where_there_is_room, boot.place.kept / "disk", disk)
            yield
        finally:
            if boot.handle.info.state is State.RESUMING:
                disk.unlink(missing_ok=True)  # it may have failed for want of room

    @asynccontextmanager
    async def _restore_suspended(self, boot: Boot) -> AsyncIterator[None]:
        assert boot.found is not None, "check comes first"
        restored = self.starter.driver.restore(
            boot.snapshot.machine(boot.id, boot.place.disk, self.starter.disk_limit),
            SnapshotFiles(boot.memory, boot.place.kept / "state", boot.memory.with_name(WORKING_SET)),
            difference=boot.place.kept / "difference" if "difference" in boot.found.digests else None,
            vmm_sha256=boot.found.platform.vmm_sha256,
        )
        async with restored as boot._machine:
            yield

    @asynccontextmanager
    async def _connect_again(self, boot: Boot) -> AsyncIterator[None]:
        """The conversation goes on where it stopped; it begins anew with a new daemon, or where it had ended before
        its machine was suspended: a VMM that has given all it had may die without harm."""
        if boot._link is None or boot.link.ended.is_set():
            boot._link = Link(boot.id, silence_s=self.starter.agent_timeout_s)
            boot.link.begin(reopened=True)
        async with self._linked(boot):
            yield

    @asynccontextmanager
    async def _linked(self, boot: Boot) -> AsyncIterator[None]:
        """After a failure the next resume begins anew: what was said to a machine that is gone cannot be unsaid."""
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
        """It runs, and that is on record; from the moment on that what was stored is dropped there is no way back.

        So it runs also where there is no room to say so: to end it for that would be to lose it.
        """
        handle, machine = boot.handle, boot.machine
        _check_wanted(handle)
        async with self.starter.running(boot):
            await anyio.to_thread.run_sync(boot.place.drop, boot.own_memory)
            pid = {"pid": machine.pid}
            changes: dict[str, Any] = {"pid": machine.pid, "attestation": boot.attestation, "suspended": None}
            async with own(f"the record of sandbox {boot.id}", partial(self.starter.terminate, boot), limit_s=10.0):
                try:
                    await self.starter.records.edge(handle, Action.RESUMED, EventKind.SANDBOX_RESUMED, pid, **changes)
                except (errors.HostError, errors.CapacityError) as refused:
                    log.error("a resume could not be recorded", sandbox=boot.id, error=str(refused))
                self.starter.end_turn(boot)
                boot.link.speak()
                handle.usage.touch()
                yield

    # ------------------------------------------------------------------ the steps of a boot from the disk

    def cold_plan(self) -> tuple[Step[Boot], ...]:
        """When its memory is of no use: a new machine, a new life of its processes, the same disk."""
        return (
            Step("resume-reserve", self._reserve_memory, undo="release-memory"),
            Step("resume-record", self._record_resume, undo="resume-over"),
            Step("resume-turn", self.starter.turn),
            Step("cold-check", self._check_disk),
            Step("resume-disk", self._copy_disk),
            Step("cold-machine", self._boot, undo="kill-resumed"),
            Step("cold-attest", self.starter.attest),
            Step("cold-link", self._connect_anew, undo="close-resumed-link"),
            Step("cold-handshake", self._introduce_anew),
            Step("cold-prepare", self._prepare),
            Step("resume-ping", self.starter.ping),
            Step("resume-run", self._run_again, undo="terminate-resumed"),
        )

    @asynccontextmanager
    async def _check_disk(self, boot: Boot) -> AsyncIterator[None]:
        found = await self._found(boot)
        await anyio.to_thread.run_sync(check_disk, boot.place, found)
        owner = boot.handle.info.image_tenant
        kit = await self.ground.kit((owner,) if owner else (found.tenant, SHARED), found.image)
        if kit.root != found.root:
            raise errors.ImageBroken(f"sandbox {boot.id}: the root disk of {found.image} is not the one it was made on")
        boot._snapshot = replace(
            found.as_snapshot(boot.place.folder),
            platform=kit.platform,
            kernel_release=kit.kernel_release,
            agent=kit.agent,
            generation=GENERATION,
        )
        boot.kernel = kit.kernel
        yield

    @asynccontextmanager
    async def _boot(self, boot: Boot) -> AsyncIterator[None]:
        """Into a memory of its own: what it was suspended with stays as it is until it runs."""
        assert boot.kernel is not None, "check comes first"
        before, boot.own_memory = boot.own_memory, f"{OWN_MEMORY}{secrets.token_hex(6)}"
        boot.booted = True
        boot.place.folder.chmod(0o710)  # a VMM's uid passes through by its group to the file bound into its jail
        spec = boot.snapshot.machine(boot.id, boot.place.disk, self.starter.disk_limit)
        async with self.starter.driver.boot(spec, boot.kernel, boot.memory) as boot._machine:
            try:
                yield
            finally:
                if boot.handle.info.state is State.RESUMING:
                    boot.memory.unlink(missing_ok=True)
                    boot.own_memory, boot.booted = before, False

    @asynccontextmanager
    async def _connect_anew(self, boot: Boot) -> AsyncIterator[None]:
        if boot._link is not None:
            boot.link.close()
        boot._link = Link(boot.id, silence_s=BOOT_S)
        async with self._linked(boot):
            yield

    @asynccontextmanager
    async def _introduce_anew(self, boot: Boot) -> AsyncIterator[None]:
        spec = boot.handle.spec
        await introduce(boot.link, Introduction(boot.id, spec.env, spec.user, spec.cwd), BOOT_S)
        yield

    @asynccontextmanager
    async def _prepare(self, boot: Boot) -> AsyncIterator[None]:
        """What waits warm in a snapshot is started here."""
        async with boot.link.open("control", {"op": "prepare", "zygote": True}, timeout_s=PREPARE_S):
            yield


def _check_wanted(handle: Handle) -> None:
    """Of one whose end was asked for what is stored is not given up for a machine that would end at once."""
    if handle.stopping:
        raise given_up(handle)


def adopted(info: SandboxInfo, folders: Path) -> Handle:
    """A handle of one that an earlier daemon suspended. Blocks, briefly."""
    try:
        spec = Suspended.read(folders / info.id).user_spec()
    except (errors.ImageBroken, errors.InvalidSpec, errors.NotSupported):  # a resume says what is wrong with it
        spec = SandboxSpec(image=info.image, max_duration_s=info.max_duration_s)
    handle = Handle(info, spec)
    handle.born_ago(time.time() - info.created_at)
    return handle
