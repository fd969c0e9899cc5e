"""One task per sandbox: it opens everything of it, watches it, and closes it in reverse.

Everybody else holds a Handle and may only ask.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import anyio
import structlog
from anyio.abc import TaskStatus

from casemate import errors
from casemate.host import own_folder
from casemate.images import copy_disk
from casemate.sandbox.handshake import Introduction
from casemate.sandbox.index import Index
from casemate.sandbox.link import Link
from casemate.sandbox.meta import write_meta
from casemate.sandbox.snapshot import Snapshot
from casemate.sandbox.spec import SandboxInfo, SandboxSpec, StateReason, Timings
from casemate.sandbox.states import Action, Reason, State, go
from casemate.vmm import Driver, Machine

log = structlog.get_logger()
WATCH_EVERY_S = 1.0


@dataclass(eq=False)
class Handle:
    """A sandbox as its users see it: what it is, how to talk to it, how to ask for its end."""

    info: SandboxInfo
    spec: SandboxSpec
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    _link: Link | None = None
    _machine: Machine | None = None
    _stop: asyncio.Event = field(default_factory=asyncio.Event)
    _why: StateReason | None = None
    _used_at: float = field(default_factory=time.monotonic)
    _busy: int = 0
    _recording: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def link(self) -> Link:
        """Raises StateConflict unless the sandbox is running; the link's own failure if it has one."""
        go(self.info.state, Action.USE, f"sandbox {self.info.id}")
        assert self._link is not None, "a running sandbox has a link"
        return self._link

    async def console(self) -> bytes:
        return await self._machine.console() if self._machine else b""

    def touch(self) -> None:
        """Somebody used it: the idle time starts again."""
        self._used_at = time.monotonic()

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Work is under way: it is not idle until the block ends."""
        self._busy += 1
        try:
            yield
        finally:
            self._busy -= 1
            self.touch()

    def ask_stop(self, reason: Reason, message: str) -> None:
        """Request the end; the first reason given stays. Returns at once."""
        self._why = self._why or StateReason(reason.value, message)
        self._stop.set()

    async def kill(self, reason: Reason = Reason.KILLED, message: str = "killed by its user") -> SandboxInfo:
        """End it and wait until nothing of it is left. Safe to call twice, also at once."""
        self.ask_stop(reason, message)
        await self.ended.wait()
        return self.info

    def overdue(self) -> StateReason | None:
        """Why the sandbox's time is up, if it is."""
        limit_s, idle_s = self.spec.max_duration_s, self.spec.idle_timeout_s
        if limit_s is not None and time.time() - self.info.created_at > limit_s:
            return StateReason(Reason.MAX_DURATION.value, f"lived for its max_duration_s of {limit_s:g} s")
        unused_s = time.monotonic() - self._used_at
        if self.spec.on_idle == "kill" and idle_s is not None and not self._busy and unused_s > idle_s:
            return StateReason(Reason.IDLE.value, f"not used for its idle_timeout_s of {idle_s:g} s")
        return None


@dataclass(frozen=True, slots=True)
class Supervisor:
    """What all supervisors of one daemon share."""

    driver: Driver
    index: Index
    folders: Path  # sandboxes/
    agent_timeout_s: float
    on_violation: Callable[[SandboxInfo, errors.CasemateError], Awaitable[None]]

    async def supervise(self, handle: Handle, snapshot: Snapshot, *, task_status: TaskStatus[None]) -> None:
        """Run one sandbox from pending to terminated. Reports *started* when it runs.

        Raises, before started, what kept it from running; after that nothing: the end is in the info.
        """
        started = False
        failure: errors.CasemateError | None = None
        try:
            async with self._open(handle, snapshot):
                started = True
                task_status.started()
                failure = await self._watch(handle)
                await self._edge(handle, Action.TERMINATE, state_reason=self._reason(handle, failure))
        except* errors.CasemateError as group:
            failure = _first(group)
        finally:
            with anyio.CancelScope(shield=True), anyio.move_on_after(10):
                await self._close(handle, failure, started)
        if failure is not None and not started:
            raise failure

    @asynccontextmanager
    async def _open(self, handle: Handle, snapshot: Snapshot) -> AsyncIterator[None]:
        """The boot list: read down to start, read up to stop."""
        born, info = time.perf_counter(), handle.info
        async with AsyncExitStack() as held:
            folder = await held.enter_async_context(own_folder(self.folders / info.id))
            tasks = await held.enter_async_context(anyio.create_task_group())
            held.callback(tasks.cancel_scope.cancel)
            tasks.start_soon(self._record, handle)  # beside the restore, which takes longer
            disk = folder / "disk"
            await anyio.to_thread.run_sync(copy_disk, snapshot.disk, disk)
            machine = await held.enter_async_context(
                self.driver.restore(snapshot.machine(info.id, disk), snapshot.files)
            )
            link = Link(info.id, silence_s=self.agent_timeout_s)
            tasks.start_soon(link.run, machine.stream)
            await machine.unpause()
            restored_ms = _since(born)
            await introduce(
                link,
                Introduction(info.id, handle.spec.env, handle.spec.user, handle.spec.cwd),
                self.agent_timeout_s,
            )
            await link.ping(timeout_s=self.agent_timeout_s)
            handle._link, handle._machine = link, machine
            timings = Timings(restore_ms=restored_ms, first_answer_ms=_since(born))
            await self._edge(handle, Action.STARTED, timings=timings, pid=machine.pid)
            handle.touch()
            yield

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

    async def _close(self, handle: Handle, failure: errors.CasemateError | None, started: bool) -> None:
        if isinstance(failure, errors.ProtocolViolation):
            await self.on_violation(handle.info, failure)
        if isinstance(failure, errors.LeakedResource):
            log.error("something of a sandbox could not be released", sandbox=handle.info.id, error=str(failure))
        if handle.info.state is not State.TERMINATING:
            reason = handle._why or StateReason(Reason.BOOT_FAILED.value, failure.message if failure else "cancelled")
            await self._edge(handle, Action.TERMINATE, state_reason=reason, record=False)
        await self._edge(handle, Action.TERMINATED, pid=None, record=False)
        handle._link = handle._machine = None
        handle.ended.set()

    async def _edge(self, handle: Handle, action: Action, *, record: bool = True, **changes: object) -> None:
        """One step of the life: the info changes, then the folder's record and the index follow."""
        state = go(handle.info.state, action, f"sandbox {handle.info.id}")
        handle.info = replace(handle.info, state=state, updated_at=time.time(), **changes)  # type: ignore[arg-type]
        handle.changed.set()
        handle.changed.clear()
        if record:
            await self._record(handle)
        else:
            await self.index.put(handle.info)

    async def _record(self, handle: Handle) -> None:
        """Write down what it is by now; one at a time, so that an older state never comes after a newer one."""
        async with handle._recording:
            info = handle.info
            await anyio.to_thread.run_sync(write_meta, self.folders / info.id, info)
            await self.index.put(info)


async def introduce(link: Link, introduction: Introduction, timeout_s: float) -> None:
    """The hand-shake, checked. Raises AgentSilent, ProtocolViolation."""
    sent_ns = time.time_ns()
    ready = await link.handshake(introduction.hello(), timeout_s=timeout_s)
    introduction.check(ready, sent_ns)


def _since(start: float) -> float:
    return round((time.perf_counter() - start) * 1000, 2)


def _first(group: BaseExceptionGroup[errors.CasemateError]) -> errors.CasemateError:
    found: BaseException = group
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    assert isinstance(found, errors.CasemateError)
    return found
