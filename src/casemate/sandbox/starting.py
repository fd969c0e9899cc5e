"""From a checked wish to a running machine: the life of a sandbox, and the first machine that it lives in."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import structlog

from casemate import errors
from casemate.audit import EventKind
from casemate.host import own, private_mib, remove_folder
from casemate.images import copy_disk
from casemate.sandbox.admission import RETRY_AFTER_S, Admission
from casemate.sandbox.attestation import attest
from casemate.sandbox.boot import Boot
from casemate.sandbox.carrying import carried
from casemate.sandbox.fitness import Here, check_fit
from casemate.sandbox.handle import Handle
from casemate.sandbox.handshake import Introduction
from casemate.sandbox.link import Link
from casemate.sandbox.plan import Step
from casemate.sandbox.records import Records
from casemate.sandbox.spec import StateReason, Timings
from casemate.sandbox.states import Action, Reason, State
from casemate.vmm import UNLIMITED, Driver, RateLimit

log = structlog.get_logger()
STARTS_AT_ONCE = 2 * (os.cpu_count() or 1)
SPARE_DISK_MIB = 64  # left free on the host's disk: records, logs and the other sandboxes go on being written


@dataclass(frozen=True, slots=True)
class Starter:
    """How the sandboxes of one daemon are started; the steps that a resume has too are public."""

    driver: Driver
    records: Records
    admission: Admission
    agent_timeout_s: float
    disk_limit: RateLimit = UNLIMITED
    turns: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(STARTS_AT_ONCE))

    def life_plan(self) -> tuple[Step[Boot], ...]:
        return (
            Step("reserve", self._reserve, undo="release-reservation"),
            Step("intend", self._intend, undo="record-end"),
            Step("folder", self._folder, undo="remove-folder"),
            Step("record", self._record_beside, undo="settle-record"),
        )

    def start_plan(self, *, copy: bool = False) -> tuple[Step[Boot], ...]:
        """*copy*: of a sandbox that was somebody's, whose processes wait for the hand-shake."""
        return (
            Step("turn", self.turn),
            Step("disk", self._disk),  # removed with its folder
            Step("machine", self._restore, undo="kill-machine"),
            Step("attest", self.attest),  # before a vCPU runs
            Step("unpause", self.unpause),
            Step("link", self._connect, undo="close-link"),
            Step("handshake", self._introduce),
            *((Step("thaw", self._thaw),) if copy else ()),
            Step("ping", self.ping),
            Step("run", self._run, undo="terminate"),
        )

    # --------------------------------------------------------------------------- the steps of a life

    @asynccontextmanager
    async def _reserve(self, boot: Boot) -> AsyncIterator[None]:
        info = boot.handle.info
        if boot.share is None:
            amount = self.admission.amount(boot.snapshot.id, info.memory_mib, info.disk_mib)
            reserved = self.admission.reserved_for(info.tenant, amount)
        else:
            reserved = self.admission.shared(boot.share)
        async with reserved as boot._reservation:
            boot.admitted_ms = since(boot.born)
            yield

    @asynccontextmanager
    async def _intend(self, boot: Boot) -> AsyncIterator[None]:
        """What will be done is written down before it is, and at the very end what became of it."""
        async with self.record_end(boot):
            await self.records.intend(boot.handle)
            yield

    @asynccontextmanager
    async def record_end(self, boot: Boot) -> AsyncIterator[None]:
        try:
            yield
        except BaseException as error:
            boot.failure = boot.failure or ours(error)
            raise
        finally:
            if not boot.kept:
                with anyio.CancelScope(shield=True), anyio.move_on_after(10):
                    end(boot)
                    await self.records.end(boot.handle, boot.failure)

    @asynccontextmanager
    async def _folder(self, boot: Boot) -> AsyncIterator[None]:
        boot.place.folder.mkdir(mode=0o700)
        async with self.known_folder(boot):
            yield

    @asynccontextmanager
    async def known_folder(self, boot: Boot) -> AsyncIterator[None]:
        async def remove() -> None:
            if not boot.kept:
                await anyio.to_thread.run_sync(remove_folder, boot.place.folder)

        async with own(f"folder {boot.place.folder}", remove, limit_s=20.0):
            yield

    @asynccontextmanager
    async def _record_beside(self, boot: Boot) -> AsyncIterator[None]:
        """The first record is written, and the intent made durable, beside the copy of the disk and the restore."""
        async with anyio.create_task_group() as boot._beside:
            boot.beside.start_soon(self._settle_intent, boot)
            boot.beside.start_soon(self.records.write, boot.handle)
            yield

    async def _settle_intent(self, boot: Boot) -> None:
        await self.records.trail.settle()
        boot.intended.set()

    # ------------------------------------------------------------------------ the steps of a machine

    @asynccontextmanager
    async def turn(self, boot: Boot) -> AsyncIterator[None]:
        """Starts queue: a hundred at once on few processors would each take as long as all of them, and seem dead."""
        await self.turns.acquire()
        boot.has_turn = True
        try:
            yield
        finally:
            self.end_turn(boot)

    def end_turn(self, boot: Boot) -> None:
        """It has answered, or never will."""
        if boot.has_turn:
            boot.has_turn = False
            self.turns.release()

    @asynccontextmanager
    async def _disk(self, boot: Boot) -> AsyncIterator[None]:
        await anyio.to_thread.run_sync(copy_where_there_is_room, boot.snapshot.disk, boot.place.disk)
        yield

    @asynccontextmanager
    async def _restore(self, boot: Boot) -> AsyncIterator[None]:
        snapshot = boot.snapshot
        build = snapshot.platform.vmm_sha256 if snapshot.is_session else None  # it is kept for as long as that is
        here = Here(await self.driver.platform(), (snapshot.root, snapshot.agent), (build,) if build else ())
        check_fit(snapshot.made, here, snapshot.sealed_as, f"snapshot {snapshot.id}")
        spec = snapshot.machine(boot.id, boot.place.disk, self.disk_limit)
        await boot.intended.wait()  # the deed; if the intent cannot be made durable this is cancelled
        async with self.driver.restore(spec, snapshot.files, vmm_sha256=build) as boot._machine:
            yield

    @asynccontextmanager
    async def attest(self, boot: Boot) -> AsyncIterator[None]:
        info = boot.handle.info
        found = await attest(
            self.driver,
            boot.machine,
            boot.snapshot,
            info.id,
            info.network,
            memory=boot.memory,
            booted=boot.booted,
        )
        boot.attestation = found.to_json()
        yield

    @asynccontextmanager
    async def _connect(self, boot: Boot) -> AsyncIterator[None]:
        boot._link = Link(boot.id, silence_s=self.agent_timeout_s)
        if boot.snapshot.is_session:  # its agent is in the middle of another conversation
            boot._link.begin(reopened=True)
        async with self.carried(boot):
            yield

    @asynccontextmanager
    async def carried(self, boot: Boot) -> AsyncIterator[None]:
        async with carried(boot.link, boot.machine) as boot._carrier:
            try:
                yield
            finally:
                if boot.sealed:
                    boot.link.rest()

    @asynccontextmanager
    async def unpause(self, boot: Boot) -> AsyncIterator[None]:
        await boot.machine.unpause()
        boot.restored_ms = since(boot.born)
        yield

    @asynccontextmanager
    async def _introduce(self, boot: Boot) -> AsyncIterator[None]:
        spec = boot.handle.spec
        introduction = Introduction(boot.id, spec.env, spec.user, spec.cwd, copy=boot.snapshot.is_session)
        await introduce(boot.link, introduction, self.agent_timeout_s)
        yield

    @asynccontextmanager
    async def _thaw(self, boot: Boot) -> AsyncIterator[None]:
        """Its user's processes run from here on: it has proved that it is another one."""
        await thaw(boot.link, self.agent_timeout_s)
        yield

    @asynccontextmanager
    async def ping(self, boot: Boot) -> AsyncIterator[None]:
        await boot.link.ping(timeout_s=self.agent_timeout_s)
        yield

    @asynccontextmanager
    async def _run(self, boot: Boot) -> AsyncIterator[None]:
        handle, machine = boot.handle, boot.machine
        timings = Timings(boot.restored_ms, since(boot.born), boot.admitted_ms)
        if not boot.warmed and (fresh_mib := private_mib(machine.pid)):
            self.admission.learn(boot.snapshot.id, fresh_mib)
        async with self.running(boot):
            pid = {"pid": machine.pid}
            changes: dict[str, Any] = {"timings": timings, "pid": machine.pid, "attestation": boot.attestation}
            # Nobody waits for the disk: after a crash of the host it has ended, whether it was pending or running
            await self.records.edge(handle, Action.STARTED, EventKind.SANDBOX_CREATED, pid, durable=False, **changes)
            self.end_turn(boot)
            handle.usage.touch()
            async with own(f"the record of sandbox {boot.id}", partial(self.terminate, boot), limit_s=10.0):
                yield

    @asynccontextmanager
    async def running(self, boot: Boot) -> AsyncIterator[None]:
        """What a handle talks to, for a block."""
        handle = boot.handle
        handle._link, handle._machine = boot.link, boot.machine
        try:
            yield
        finally:
            if boot.sealed:
                await handle.console()  # what it said last stays to be read
            handle._machine = None

    async def terminate(self, boot: Boot) -> None:
        """Terminating, and that is on record before anything is undone; not if it is only put to rest."""
        if boot.sealed:
            return
        handle = boot.handle
        reason = self._reason(handle, boot.failure)
        try:
            await self.records.tell(EventKind.SANDBOX_TERMINATE, handle, {"reason": reason.code})
            await self.records.trail.settle()
            await self.records.edge(handle, Action.TERMINATE, state_reason=reason)
        except (errors.HostError, errors.CapacityError) as error:
            log.error("the end of a sandbox could not be recorded beforehand", sandbox=boot.id, error=str(error))

    def _reason(self, handle: Handle, failure: errors.CasemateError | None) -> StateReason:
        if failure is None:
            return handle._why or StateReason(Reason.DAEMON_STOPPED.value, "the daemon stopped")
        match failure:
            case errors.ProtocolViolation():
                code = Reason.PROTOCOL_VIOLATION
            case errors.VmmExited():
                code = Reason.VMM_DIED
            case errors.CasemateError(code=errors.CasemateError.code):
                code = Reason.INTERNAL
            case _:
                code = Reason.GUEST_SILENT
        return StateReason(code.value, failure.message)


def end(boot: Boot) -> None:
    """Terminated, whatever it was; nothing happens when it is already."""
    handle, message = boot.handle, boot.failure.message if boot.failure else "given up while pending"
    if handle.info.state not in (State.TERMINATING, State.TERMINATED):
        handle.move(Action.TERMINATE, state_reason=handle._why or StateReason(Reason.BOOT_FAILED.value, message))
    if handle.info.state is State.TERMINATING:
        handle.move(Action.TERMINATED, pid=None, suspended=None)
    handle._link = handle._machine = None


def given_up(handle: Handle) -> errors.CasemateError:
    """Why one does not come to run whose end was asked for."""
    why = handle._why or StateReason(Reason.KILLED.value, "it was given up")
    if why.code == Reason.DAEMON_STOPPED.value:
        return stopping()
    return errors.StateConflict(f"sandbox {handle.info.id} was ended before it ran: {why.message}")


def stopping() -> errors.HostFull:
    return errors.HostFull(
        "the daemon is stopping",
        hint="try again when it has restarted",
        evidence={"reason": Reason.DAEMON_STOPPED.value, "retry_after_s": RETRY_AFTER_S},
    )


def copy_where_there_is_room(source: Path, target: Path) -> None:
    """Blocks. Raises HostFull before the first byte when the disk would be left without room for the others."""
    free = os.statvfs(target.parent)
    free_mib, needed_mib = free.f_bavail * free.f_frsize >> 20, (source.stat().st_blocks * 512 >> 20) + SPARE_DISK_MIB
    if free_mib < needed_mib:
        raise errors.HostFull(
            f"{free_mib} MiB are free where sandboxes are kept; a new one needs {needed_mib}",
            hint="free some disk space",
            evidence={"free_mib": free_mib, "needed_mib": needed_mib, "retry_after_s": RETRY_AFTER_S},
        )
    copy_disk(source, target)


async def introduce(link: Link, introduction: Introduction, timeout_s: float, *, awake: bool = False) -> None:
    """The hand-shake, checked. *awake*: it has just answered something. Raises AgentSilent, ProtocolViolation."""
    if not awake:  # once it reads, the clock in HELLO is as old as a message, not as a boot
        await link.ping(timeout_s=timeout_s)
    sent_ns, sent_at = time.time_ns(), time.monotonic_ns()
    ready = await link.handshake(introduction.hello(), timeout_s=timeout_s)
    # not the wall's time now: it may have been set back, and an honest guest is no liar for that
    introduction.check(ready, sent_ns, sent_ns + time.monotonic_ns() - sent_at)
    link.knows_copies = "copy" in ready  # one from before there were any does not speak of them


async def thaw(link: Link, timeout_s: float) -> None:
    """Let the user's processes of a guest go on. Raises AgentSilent, GuestError."""
    async with link.open("control", {"op": "thaw"}, timeout_s=timeout_s, urgent=True):
        pass


def since(start: float) -> float:
    return round((time.perf_counter() - start) * 1000, 2)


def ours(error: BaseException) -> errors.CasemateError | None:
    if isinstance(error, BaseExceptionGroup):
        found = error.subgroup(errors.CasemateError)
        return first_of(found) if found is not None else None
    return error if isinstance(error, errors.CasemateError) else None


def fault_of_ours(sandbox: str, error: BaseException) -> errors.CasemateError:
    """What nobody foresaw, as an error that is typed and, with all we know of it, in the log."""
    log.error("a fault of ours", sandbox=sandbox, exc_info=error)
    return errors.CasemateError(f"sandbox {sandbox}: {error!r}", hint="a fault of ours; the daemon's log has more")


def first_of(group: BaseExceptionGroup[errors.CasemateError]) -> errors.CasemateError:
    found: BaseException = group
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    assert isinstance(found, errors.CasemateError)
    return found
