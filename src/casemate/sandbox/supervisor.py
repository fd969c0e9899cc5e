"""One task per sandbox: it opens everything of it, watches it, and closes it in reverse.

Everybody else holds a Handle and may only ask.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import anyio
import structlog
from anyio.abc import TaskGroup, TaskStatus
from sqlalchemy import Connection

from casemate import errors
from casemate.audit import EventKind, Trail
from casemate.host import own, own_folder, private_mib
from casemate.images import copy_disk
from casemate.sandbox.admission import RETRY_AFTER_S, Admission
from casemate.sandbox.attestation import attest
from casemate.sandbox.handle import Handle
from casemate.sandbox.handshake import Introduction
from casemate.sandbox.index import Index
from casemate.sandbox.link import Link
from casemate.sandbox.meta import write_meta
from casemate.sandbox.plan import Reach, Step, carried_out, pass_by, refusals_named
from casemate.sandbox.snapshot import Snapshot
from casemate.sandbox.spec import SandboxInfo, StateReason, Timings
from casemate.sandbox.states import Action, Reason, State, go
from casemate.vmm import Driver, Machine

log = structlog.get_logger()
BootT = TypeVar("BootT", bound="Boot")
WATCH_EVERY_S = 1.0
Tell = Callable[[Callable[[Connection], object]], Awaitable[None]]  # an event, and the row that changes with it
SPARE_DISK_MIB = 64  # left free on the host's disk: records, logs and the other sandboxes go on being written


@dataclass(eq=False)
class Boot:
    """What the steps of one sandbox's plan hand on to each other."""

    handle: Handle
    snapshot: Snapshot
    born: float = field(default_factory=time.perf_counter)
    started: bool = False
    failure: errors.CasemateError | None = None
    _beside: TaskGroup | None = None
    _machine: Machine | None = None
    _link: Link | None = None
    attestation: Mapping[str, object] | None = None
    intended: asyncio.Event = field(default_factory=asyncio.Event)
    restored_ms: float = 0.0

    @property
    def id(self) -> str:
        return self.handle.info.id

    @property
    def beside(self) -> TaskGroup:
        assert self._beside is not None, "record comes first"
        return self._beside

    @property
    def machine(self) -> Machine:
        assert self._machine is not None, "machine comes first"
        return self._machine

    @property
    def link(self) -> Link:
        assert self._link is not None, "link comes first"
        return self._link


@dataclass(frozen=True, slots=True)
class Supervisor:
    """What all supervisors of one daemon share."""

    driver: Driver
    index: Index
    folders: Path  # sandboxes/
    agent_timeout_s: float
    trail: Trail
    admission: Admission
    reach: Reach = pass_by
    unrecorded: dict[str, SandboxInfo] = field(default_factory=dict)  # ends that a full disk refused to take down

    async def supervise(self, handle: Handle, snapshot: Snapshot, *, task_status: TaskStatus[None]) -> None:
        """Run one sandbox from pending to terminated. Reports *started* when it runs.

        Raises, before started, what kept it from running; after that nothing: the end is in the info.
        """
        await self.carry(Boot(handle, snapshot), self.plan(), task_status.started)

    async def carry(self, boot: BootT, plan: Sequence[Step[BootT]], started: Callable[[], object]) -> None:
        """As supervise, by a *plan* that ends with a running sandbox."""
        handle = boot.handle
        try:
            async with anyio.create_task_group() as aside:
                aside.start_soon(_give_up_boot, handle, aside.cancel_scope)
                async with carried_out(plan, boot, self.reach):
                    boot.started = True
                    started()
                    boot.failure = await self._watch(handle)
                aside.cancel_scope.cancel()
        except* errors.CasemateError as group:
            boot.failure = boot.failure or _first(group)
        finally:
            _end(boot)
            handle.ended.set()
        if isinstance(boot.failure, errors.LeakedResource):
            log.error("something of a sandbox could not be released", sandbox=boot.id, error=str(boot.failure))
        if not boot.started:
            raise boot.failure or _given_up(handle)

    def plan(self) -> tuple[Step[Boot], ...]:
        """The boot list: read down to start; the names at the right, read up, are the teardown."""
        return (
            Step("reserve", self._reserve, undo="release-reservation"),
            Step("intend", self._intend, undo="record-end"),
            Step("folder", self._folder, undo="remove-folder"),
            Step("record", self._record_beside, undo="settle-record"),
            Step("disk", self._disk),  # removed with its folder
            Step("machine", self._restore, undo="kill-machine"),
            Step("attest", self._attest),  # before a vCPU runs
            Step("link", self._connect, undo="close-link"),
            Step("unpause", self._unpause),
            Step("handshake", self._introduce),
            Step("ping", self._ping),
            Step("run", self._run, undo="terminate"),
        )

    # ------------------------------------------------------------------------------------ the steps

    @asynccontextmanager
    async def _reserve(self, boot: Boot) -> AsyncIterator[None]:
        info = boot.handle.info
        amount = self.admission.amount(boot.snapshot.id, info.memory_mib, info.disk_mib)
        async with self.admission.reserved_for(info.tenant, amount):
            yield

    @asynccontextmanager
    async def _intend(self, boot: Boot) -> AsyncIterator[None]:
        """What will be done is written down before it is, and at the very end what became of it."""
        try:
            for info in list(self.unrecorded.values()):  # their names are taken until then
                await self.index.put(info)
                self.unrecorded.pop(info.id, None)
            info = boot.handle.info
            detail = {"image": info.image, "name": info.name}
            await self.audit(EventKind.SANDBOX_CREATE, boot, detail, along=self.index.putting(info))
            yield
        except BaseException as error:
            boot.failure = boot.failure or _ours(error)
            raise
        finally:
            with anyio.CancelScope(shield=True), anyio.move_on_after(10):
                await self._record_end(boot)

    @asynccontextmanager
    async def _folder(self, boot: Boot) -> AsyncIterator[None]:
        async with own_folder(self.folders / boot.id):
            yield

    @asynccontextmanager
    async def _record_beside(self, boot: Boot) -> AsyncIterator[None]:
        """The first record is written, and the intent made durable, beside the copy of the disk and the restore."""
        async with anyio.create_task_group() as boot._beside:
            boot.beside.start_soon(self._settle_intent, boot)
            boot.beside.start_soon(self._record, boot.handle)
            yield

    async def _settle_intent(self, boot: Boot) -> None:
        await self.trail.settle()
        boot.intended.set()

    @asynccontextmanager
    async def _disk(self, boot: Boot) -> AsyncIterator[None]:
        disk = self.folders / boot.id / "disk"
        await anyio.to_thread.run_sync(_copy_where_there_is_room, boot.snapshot.disk, disk)
        yield

    @asynccontextmanager
    async def _restore(self, boot: Boot) -> AsyncIterator[None]:
        spec = boot.snapshot.machine(boot.id, self.folders / boot.id / "disk")
        await boot.intended.wait()  # the deed; if the intent cannot be made durable this is cancelled
        async with self.driver.restore(spec, boot.snapshot.files) as boot._machine:
            yield

    @asynccontextmanager
    async def _attest(self, boot: Boot) -> AsyncIterator[None]:
        info = boot.handle.info
        boot.attestation = (await attest(self.driver, boot.machine, boot.snapshot, info.id, info.network)).to_json()
        yield

    @asynccontextmanager
    async def _connect(self, boot: Boot) -> AsyncIterator[None]:
        boot._link = Link(boot.id, silence_s=self.agent_timeout_s)
        async with anyio.create_task_group() as carrier:
            carrier.start_soon(boot.link.run, boot.machine.stream)
            try:
                yield
            finally:
                carrier.cancel_scope.cancel()

    @asynccontextmanager
    async def _unpause(self, boot: Boot) -> AsyncIterator[None]:
        await boot.machine.unpause()
        boot.restored_ms = since(boot.born)
        yield

    @asynccontextmanager
    async def _introduce(self, boot: Boot) -> AsyncIterator[None]:
        spec = boot.handle.spec
        await introduce(boot.link, Introduction(boot.id, spec.env, spec.user, spec.cwd), self.agent_timeout_s)
        yield

    @asynccontextmanager
    async def _ping(self, boot: Boot) -> AsyncIterator[None]:
        await boot.link.ping(timeout_s=self.agent_timeout_s)
        yield

    @asynccontextmanager
    async def _run(self, boot: Boot) -> AsyncIterator[None]:
        """Running, until the block ends; then terminating, and that is on record before anything is undone."""
        handle, machine = boot.handle, boot.machine
        timings = Timings(restore_ms=boot.restored_ms, first_answer_ms=since(boot.born))
        handle._link, handle._machine = boot.link, machine
        if fresh_mib := private_mib(machine.pid):
            self.admission.learn(boot.snapshot.id, fresh_mib)
        tell = partial(self.audit, EventKind.SANDBOX_CREATED, boot, {"pid": machine.pid})
        await self._edge(handle, Action.STARTED, tell, timings=timings, pid=machine.pid, attestation=boot.attestation)
        handle.touch()
        async with own(f"the record of sandbox {boot.id}", partial(self._terminate, boot), limit_s=10.0):
            yield

    async def _terminate(self, boot: Boot) -> None:
        handle = boot.handle
        reason = self._reason(handle, boot.failure)
        try:
            await self.audit(EventKind.SANDBOX_TERMINATE, boot, {"reason": reason.code})
            await self.trail.settle()
            await self._edge(handle, Action.TERMINATE, state_reason=reason)
        except (errors.HostError, errors.CapacityError) as error:
            log.error("the end of a sandbox could not be recorded beforehand", sandbox=boot.id, error=str(error))

    async def _record_end(self, boot: Boot) -> None:
        """Nothing of it is left. A disk that refuses the record does not keep the sandbox alive."""
        _end(boot)
        handle, failure = boot.handle, boot.failure
        reason = handle.info.state_reason
        detail = {"reason": reason.code, "message": reason.message} if reason else {}
        try:
            if isinstance(failure, errors.ProtocolViolation):
                await self.audit(EventKind.PROTOCOL_VIOLATION, boot, {"message": failure.message})
            along = self.index.putting(handle.info)
            await self.audit(EventKind.SANDBOX_TERMINATED, boot, detail, along=along)
        except (errors.HostError, errors.CapacityError) as error:
            log.error("the end of a sandbox could not be recorded", sandbox=boot.id, error=str(error), **detail)
            self.unrecorded[boot.id] = handle.info

    async def audit(
        self,
        kind: EventKind,
        boot: Boot,
        detail: Mapping[str, object],
        along: Callable[[Connection], object] | None = None,
    ) -> None:
        info, actor = boot.handle.info, boot.handle.actor
        await self.trail.record(kind, tenant=info.tenant, subject=info.id, actor=actor, detail=detail, along=along)

    # --------------------------------------------------------------------------------- while it runs

    async def _watch(self, handle: Handle) -> errors.CasemateError | None:
        """Until somebody wants the end, its time is up, or the guest or its VMM brings it about."""
        link, machine = handle._link, handle._machine
        assert link is not None
        assert machine is not None

        async def first(wait: Callable[[], Awaitable[object]]) -> None:
            await wait()
            race.cancel_scope.cancel()

        async def until_overdue() -> None:
            while not (why := handle.overdue()):
                await anyio.sleep(WATCH_EVERY_S)
            handle.ask_stop(Reason(why.code), why.message)

        async with anyio.create_task_group() as race:
            race.start_soon(first, handle._stop.wait)
            race.start_soon(first, link.ended.wait)
            race.start_soon(first, machine.wait_exit)
            race.start_soon(first, until_overdue)
        if handle._stop.is_set():
            # Who held a channel may have found the lie before us, and asked for the end
            why = handle._why
            lied = why is not None and why.code == Reason.PROTOCOL_VIOLATION
            return errors.ProtocolViolation(why.message) if why is not None and lied else None
        with anyio.move_on_after(0.5):  # a VMM that ends closes the stream first; its end is the better reason
            vmm_end = await machine.wait_exit()
            return errors.VmmExited(
                f"sandbox {handle.info.id}: its VMM ended with {vmm_end}",
                evidence={"console": (await handle.console())[-2000:].decode(errors="replace")},
            )
        return link.failure

    def _reason(self, handle: Handle, failure: errors.CasemateError | None) -> StateReason:
        if failure is None:
            return handle._why or StateReason(Reason.DAEMON_STOPPED.value, "the daemon stopped")
        match failure:
            case errors.ProtocolViolation():
                code = Reason.PROTOCOL_VIOLATION
            case errors.VmmExited():
                code = Reason.VMM_DIED
            case _:
                code = Reason.GUEST_SILENT
        return StateReason(code.value, failure.message)

    async def _edge(self, handle: Handle, action: Action, tell: Tell | None = None, **changes: object) -> None:
        """One step of the life: the info changes, then the folder's record and the index follow."""
        handle.info = replace(_moved(handle.info, action), **changes)  # type: ignore[arg-type]
        handle.changed.set()
        handle.changed.clear()
        await self._record(handle, tell)

    async def _record(self, handle: Handle, tell: Tell | None = None) -> None:
        """Write down what it is by now; one at a time, so that an older state never comes after a newer one."""
        async with handle._recording:
            info = handle.info
            with refusals_named(f"the record of sandbox {info.id}"):
                await anyio.to_thread.run_sync(write_meta, self.folders / info.id, info)
            if tell is None:
                await self.index.put(info)
            else:
                await tell(self.index.putting(info))


async def _give_up_boot(handle: Handle, scope: anyio.CancelScope) -> None:
    """Its end was asked for before it ran: nobody waits for a boot that is not wanted."""
    await handle._stop.wait()
    if handle.info.state in (State.PENDING, State.READY):
        scope.cancel()


def _end(boot: Boot) -> None:
    """Terminated, whatever it was; nothing happens when it is already."""
    handle, message = boot.handle, boot.failure.message if boot.failure else "given up while pending"
    if handle.info.state not in (State.TERMINATING, State.TERMINATED):
        reason = handle._why or StateReason(Reason.BOOT_FAILED.value, message)
        handle.info = replace(_moved(handle.info, Action.TERMINATE), state_reason=reason)
    if handle.info.state is State.TERMINATING:
        handle.info = replace(_moved(handle.info, Action.TERMINATED), pid=None)
    handle._link = handle._machine = None


def _given_up(handle: Handle) -> errors.CasemateError:
    why = handle._why or StateReason(Reason.KILLED.value, "it was given up")
    if why.code == Reason.DAEMON_STOPPED.value:
        return stopping()
    return errors.StateConflict(f"sandbox {handle.info.id} was ended while pending: {why.message}")


def stopping() -> errors.HostFull:
    return errors.HostFull(
        "the daemon is stopping",
        hint="try again when it has restarted",
        evidence={"reason": Reason.DAEMON_STOPPED.value, "retry_after_s": RETRY_AFTER_S},
    )


def _copy_where_there_is_room(source: Path, target: Path) -> None:
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


async def introduce(link: Link, introduction: Introduction, timeout_s: float) -> None:
    """The hand-shake, checked. Raises AgentSilent, ProtocolViolation."""
    await link.ping(timeout_s=timeout_s)  # it reads by now: the clock in HELLO is as old as a message, not as a boot
    sent_ns, sent_at = time.time_ns(), time.monotonic_ns()
    ready = await link.handshake(introduction.hello(), timeout_s=timeout_s)
    # not the wall's time now: it may have been set back, and an honest guest is no liar for that
    introduction.check(ready, sent_ns, sent_ns + time.monotonic_ns() - sent_at)


def since(start: float) -> float:
    return round((time.perf_counter() - start) * 1000, 2)


def _moved(info: SandboxInfo, action: Action) -> SandboxInfo:
    return replace(info, state=go(info.state, action, f"sandbox {info.id}"), updated_at=time.time())


def _ours(error: BaseException) -> errors.CasemateError | None:
    if isinstance(error, BaseExceptionGroup):
        found = error.subgroup(errors.CasemateError)
        return _first(found) if found is not None else None
    return error if isinstance(error, errors.CasemateError) else None


def _first(group: BaseExceptionGroup[errors.CasemateError]) -> errors.CasemateError:
    found: BaseException = group
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    assert isinstance(found, errors.CasemateError)
    return found
