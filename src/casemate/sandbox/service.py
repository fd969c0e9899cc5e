"""All sandboxes of one daemon: the task group their supervisors live in, and the ways to a handle."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path

import anyio
import structlog
from anyio.abc import TaskGroup
from prometheus_client.core import Metric

from casemate import errors
from casemate.sandbox.admission import Amount, Relief, Share
from casemate.sandbox.copying import Copier, Copy, amount_of, stored_amount
from casemate.sandbox.handle import Handle
from casemate.sandbox.ids import new_id
from casemate.sandbox.index import Index
from casemate.sandbox.meters import Meters, gauge
from casemate.sandbox.pool_keeper import Keeper, Traffic
from casemate.sandbox.pool_member import Claim, MemberSupervisor
from casemate.sandbox.pool_spec import PoolSpec
from casemate.sandbox.pools import Pools
from casemate.sandbox.relief import IdleSuspender
from casemate.sandbox.resuming import adopted
from casemate.sandbox.snapshot import FindSnapshot, Progress, Snapshot, SnapshotKind
from casemate.sandbox.spec import SandboxInfo, SandboxSpec, ShapeWish
from casemate.sandbox.starting import ours, stopping
from casemate.sandbox.states import Reason, State
from casemate.sandbox.supervisor import Supervisor
from casemate.sandbox.templates import Templates

log = structlog.get_logger()
RESTABLE = (State.RUNNING, State.RESUMING)
SUSPENDS_AT_ONCE = 2  # they share a disk, and the last one has to be done in time
SUSPEND_S = 35.0  # of the time to drain in; whoever was not stored by then is ended
DRAIN_S = 45.0  # of the 60 s a daemon has to stop in; the rest is for its connections and the launcher
MAX_FORKS = 64  # at once
END_S = 60.0
REMEMBER_S = 86_400  # a terminated sandbox is listed for a day


class Sandboxes:
    """Made by ``open_sandboxes``; every method may be called from any task of the daemon."""

    def __init__(
        self,
        supervisor: Supervisor,
        index: Index,
        find_snapshot: FindSnapshot,
        tasks: TaskGroup,
        snapshots: Path,
        refills_at_once: int = 1,
    ) -> None:
        self._supervisor = supervisor
        self._index = index
        self._find_snapshot = find_snapshot
        self._tasks = tasks
        self._traffic = Traffic()
        self._live = self._traffic.live
        self._draining = False
        self._copier = Copier(snapshots, supervisor.suspender.seal, supervisor.records.trail)
        self.templates = Templates(snapshots, supervisor.starter.admission, tasks)
        self.meters = Meters()
        self.meters.watch(self._families)
        members = MemberSupervisor(supervisor)
        keeper = Keeper(members, find_snapshot, self._new_info, self._traffic, self.meters, tasks, refills_at_once)
        self.pools = Pools(keeper, index)

    async def create(
        self, tenant: str, spec: SandboxSpec, *, actor: str = "host", progress: Progress | None = None
    ) -> Handle:
        """A running sandbox, claimed from a pool or restored for it.

        Cancelled, or out of time: whatever had begun is ended again.
        ``create_timeout_s`` begins when there is a snapshot: the first use of a shape builds it, within limits of
        its own. Raises NotFound for the image, SnapshotMissing, StateConflict for a taken name, BootTimeout after
        ``create_timeout_s``, HostFull, HostError, VmmError, GuestError.
        """
        self._check_serving()
        wish = ShapeWish(spec.vcpus, spec.memory_mib, spec.disk_mib)
        async with self._find_snapshot(tenant, spec.image, wish, build=spec.build, progress=progress) as snapshot:
            self._check_serving()  # a build takes a while
            if snapshot.surroundings is not None:
                spec = snapshot.surroundings.under(spec)
            try:
                with self._counted(), anyio.fail_after(spec.create_timeout_s):
                    claimed = await self.pools.claim(Claim(tenant, spec, actor), snapshot)
                    return claimed or await self._start(tenant, spec, snapshot, actor)
            except TimeoutError as error:
                raise errors.BootTimeout(
                    f"the sandbox did not answer within create_timeout_s = {spec.create_timeout_s:g} s",
                    hint="the host may be overloaded; see casemate doctor",
                    retry=errors.Retry.SAFE,
                ) from error

    @contextmanager
    def _counted(self) -> Iterator[None]:
        self._traffic.creating += 1
        result = "cancelled"
        try:
            yield
            result = "created"
        except errors.CasemateError as error:
            result = error.code
            raise
        except TimeoutError:
            result = errors.BootTimeout.code
            raise
        finally:
            self._traffic.creating -= 1
            self._traffic.created_at = time.monotonic()
            self.meters.creates.labels(result).inc()

    def _check_serving(self) -> None:
        if self._draining:
            raise stopping()

    def get(self, tenant: str, ref: str) -> Handle:
        """The live sandbox of that id, name or unique prefix of an id. Raises NotFound, InvalidSpec."""
        own = [h for h in self._live.values() if h.info.tenant == tenant]
        for handle in own:
            if ref in (handle.info.id, handle.info.name):
                return handle
        found = [h for h in own if ref and h.info.id.startswith(ref)]
        if len(found) > 1:
            raise errors.InvalidSpec(f"{ref!r} is the beginning of {len(found)} ids", hint="write more of it")
        if not found:
            raise errors.NotFound(f"no live sandbox {ref[:80]!r}", hint="casemate ps --all lists them")
        return found[0]

    async def info(self, tenant: str, ref: str) -> SandboxInfo:
        """As get, and for a day also what has terminated."""
        try:
            return self.get(tenant, ref).info
        except errors.NotFound:
            for info in await self._index.listed(tenant):
                if info.id == ref or (len(ref) >= 4 and info.id.startswith(ref)):
                    return info
            raise

    async def list(self, tenant: str, *, include_terminated: bool = False) -> list[SandboxInfo]:
        """Oldest first."""
        live = {h.info.id: h.info for h in self._live.values() if h.info.tenant == tenant}
        if include_terminated:
            ended = await self._index.listed(tenant)
            live = {i.id: i for i in ended if i.state is State.TERMINATED} | live
        return sorted(live.values(), key=lambda i: i.created_at)

    async def kill(self, tenant: str, ref: str) -> SandboxInfo:
        """End it and answer when it is gone; one that has already ended is answered as it is."""
        try:
            return await self.get(tenant, ref).kill()
        except errors.NotFound:
            return await self.info(tenant, ref)

    def live(self) -> Iterable[Handle]:
        return self._live.values()

    def is_parked(self, sandbox_id: str) -> bool:
        """Whether it is frozen until somebody needs it; of one that is not live: no."""
        handle = self._live.get(sandbox_id)
        return handle is not None and handle.parked

    async def suspend(self, tenant: str, ref: str, *, actor: str = "host") -> SandboxInfo:
        """See Handle.suspend. Raises NotFound too."""
        return await self.get(tenant, ref).suspend(actor)

    async def resume(self, tenant: str, ref: str, *, cold: bool = False, actor: str = "host") -> SandboxInfo:
        """See Handle.resume. Raises NotFound too."""
        return await self.get(tenant, ref).resume(actor, cold=cold)

    async def keep_alive(self, tenant: str, ref: str, for_s: float) -> SandboxInfo:
        """See Handle.keep_alive. Raises NotFound too."""
        return await self.get(tenant, ref).keep_alive(for_s)

    async def take(
        self,
        tenant: str,
        ref: str,
        *,
        image: str,
        kind: SnapshotKind = "user",
        snapshot_id: str | None = None,
        durable: bool = True,
        actor: str = "host",
    ) -> Snapshot:
        """The sandbox's present state as a snapshot of its tenant's, of *image*; the sandbox goes on as before.

        Cancelled or failed: nothing of it stays. Raises NotFound, StateConflict, HostFull, HostError, VmmError,
        GuestError.
        """
        self._check_serving()
        await self.get(tenant, ref).check_copyable()
        handle, wanted = self.get(tenant, ref), Copy(snapshot_id or new_id(), image, kind, durable, actor)
        async with self._supervisor.starter.admission.reserved_for(tenant, await self._most_of(handle)):
            return await self._copier.copy(handle, wanted, {"image": image})

    async def fork(
        self,
        tenant: str,
        ref: str,
        count: int,
        *,
        actor: str = "host",
        labels: Mapping[str, str] | None = None,
        on_progress: Progress | None = None,
    ) -> Sequence[Handle]:
        """*count* running copies of a sandbox at its present moment, all or none; it goes on as before.

        Room for all of them is reserved before anything is copied.

        Each is another sandbox: of its spec, but without a name, with *labels* beside its own and a life that begins
        now. Cancelled or failed: the copies are ended. Raises InvalidSpec, and as take and create.
        """
        if not 1 <= count <= MAX_FORKS:
            raise errors.InvalidSpec(f"count is {count}; it must be from 1 to {MAX_FORKS}")
        self._check_serving()
        parent, progress = self.get(tenant, ref), on_progress or _nobody_listens
        spec = replace(parent.spec, name=None, attached=False, labels={**parent.spec.labels, **(labels or {})})
        await parent.check_copyable()
        wanted, admission = Copy(new_id(), parent.info.image, "fork", False, actor), self._supervisor.starter.admission
        each = admission.amount(wanted.id, parent.info.memory_mib, parent.info.disk_mib)
        what = f"{count} copies of sandbox {parent.info.id}"
        async with (
            admission.reserved_for(tenant, each * count, what) as room,
            self.templates.being_made(wanted.id, tenant, await self._most_of(parent)) as template,
        ):
            progress("copy", f"copying sandbox {parent.info.id}", 0.0)
            snapshot = await self._copier.copy(parent, wanted, {"count": count})
            self.templates.measured(template, await anyio.to_thread.run_sync(stored_amount, snapshot.folder))
            return await self._start_all(parent, spec, snapshot, Share(room, each), count, actor, progress)

    async def _start_all(
        self,
        parent: Handle,
        spec: SandboxSpec,
        snapshot: Snapshot,
        share: Share,
        count: int,
        actor: str,
        progress: Progress,
    ) -> Sequence[Handle]:
        copies: dict[str, Handle] = {}

        async def start() -> None:
            tenant, forked_from = parent.info.tenant, parent.info.id
            handle = await self._start(tenant, spec, snapshot, actor, forked_from=forked_from, share=share)
            copies[handle.info.id] = handle
            progress("start", f"{len(copies)} of {count} run", len(copies) / count)

        try:
            async with anyio.create_task_group() as starting:
                for _ in range(count):
                    starting.start_soon(start)
        except BaseException as error:
            for handle in copies.values():
                handle.ask_stop(Reason.BOOT_FAILED, "another copy of the same fork could not be started")
            with anyio.CancelScope(shield=True), anyio.move_on_after(END_S):
                for handle in copies.values():
                    await handle.ended.wait()
            if (failure := ours(error)) is not None:
                raise failure from error
            raise
        return [*copies.values()]

    async def _most_of(self, handle: Handle) -> Amount:
        return await anyio.to_thread.run_sync(amount_of, handle, self._supervisor.place_of(handle))

    def adopt(self, info: SandboxInfo) -> Handle:
        """A sandbox that an earlier daemon suspended is live again, and rests."""
        handle = adopted(info, self._supervisor.records.folders)
        self._live[info.id] = handle
        self.templates.hold(info.snapshot, info.id)
        self._tasks.start_soon(self._look_after, handle)
        return handle

    async def _look_after(self, handle: Handle) -> None:
        try:
            await self._supervisor.look_after(handle)
        finally:
            self._leave(handle)

    def count_live(self) -> int:
        """Those that a daemon has to be there for: the suspended ones wait for the next one, too."""
        return sum(handle.info.state is not State.SUSPENDED for handle in self._live.values())

    @property
    def draining(self) -> bool:
        return self._draining

    async def drain(self) -> None:
        """No new ones; all rest or end, together, those that are only being made too. Takes at most 45 s.

        What is suspended stays so for the next daemon, and what is to be suspended when idle is suspended now.
        """
        self._draining = True
        places = anyio.Semaphore(SUSPENDS_AT_ONCE)
        with anyio.move_on_after(DRAIN_S):
            async with anyio.create_task_group() as tasks:
                for handle in list(self._live.values()):
                    tasks.start_soon(self._let_go, handle, places)
                await self.pools.drain()

    async def _let_go(self, handle: Handle, places: anyio.Semaphore) -> None:
        if handle.spec.on_idle == "suspend" and not handle.spec.attached and handle.info.state in RESTABLE:
            with anyio.move_on_after(SUSPEND_S):
                async with places:
                    try:
                        await handle.suspend("drain")
                    except errors.CasemateError as error:
                        log.error("a sandbox could not be suspended", sandbox=handle.info.id, error=str(error))
        handle.ask_stop(Reason.DAEMON_STOPPED, "the daemon was stopped")
        await handle.ended.wait()

    async def _start(
        self,
        tenant: str,
        spec: SandboxSpec,
        snapshot: Snapshot,
        actor: str,
        *,
        forked_from: str | None = None,
        share: Share | None = None,
    ) -> Handle:
        if self._draining:  # since it asked for its snapshot
            raise stopping()
        info = replace(self._new_info(tenant, spec, snapshot), forked_from=forked_from)
        handle = Handle(info, spec, actor)
        self._live[info.id] = handle
        self.templates.hold(snapshot.id, info.id)
        if forked_from is None:
            self.pools.count_use(handle, snapshot)
        try:
            await self._tasks.start(self._supervise, handle, snapshot, share)
            self.meters.restores.observe((handle.info.timings.restore_ms or 0.0) / 1000)
        except BaseException:  # also cancellation: the caller will never see this sandbox
            handle.ask_stop(Reason.BOOT_FAILED, "its create was cancelled or failed")
            raise
        return handle

    async def _supervise(
        self, handle: Handle, snapshot: Snapshot, share: Share | None, *, task_status: anyio.abc.TaskStatus[None]
    ) -> None:
        try:
            await self._supervisor.supervise(handle, snapshot, share, task_status=task_status)
        finally:
            self._leave(handle)
            self.pools.end_use(handle)

    def _leave(self, handle: Handle) -> None:
        self._live.pop(handle.info.id, None)
        if handle.info.state is State.TERMINATED:  # else it waits for the next daemon, and needs what it stands on
            self.templates.let_go(handle.info.snapshot, handle.info.id)

    def _families(self) -> Iterable[Metric]:
        states = Counter(handle.info.state for handle in self._live.values())
        every = [((state.value,), float(states[state])) for state in State]
        yield gauge("casemate_sandboxes", "Sandboxes that live, by state; pools have ready ones", ("state",), every)
        admission = self._supervisor.starter.admission
        kinds = {"reserved": admission.reserved, "budget": admission.budget}
        for what, said in (("memory", "Memory"), ("disk", "Disk")):
            values = [((kind,), float(getattr(amount, f"{what}_mib") << 20)) for kind, amount in kinds.items()]
            yield gauge(f"casemate_{what}_bytes", f"{said} that sandboxes reserve, and may", ("kind",), values)

    def _new_info(self, tenant: str, spec: SandboxSpec, snapshot: Snapshot) -> SandboxInfo:
        if spec.name is not None and any(
            h.info.name == spec.name and h.info.tenant == tenant for h in self._live.values()
        ):
            raise errors.StateConflict(f"a sandbox named {spec.name!r} is alive", hint="kill it, or take another name")
        driver, now = self._supervisor.starter.driver, time.time()
        return SandboxInfo(
            id=new_id(),
            tenant=tenant,
            name=spec.name,
            image=snapshot.image,
            snapshot=snapshot.id,
            state=State.PENDING,
            isolation=driver.isolation,
            accelerator=driver.accelerator,
            vcpus=snapshot.shape.vcpus,
            memory_mib=snapshot.shape.memory_mib,
            disk_mib=snapshot.shape.disk_mib,
            labels=dict(spec.labels),
            created_at=now,
            updated_at=now,
            idle_timeout_s=spec.idle_timeout_s,
            on_idle=spec.on_idle,
            park_after_s=spec.park_after_s,
            auto_resume=spec.auto_resume,
            max_duration_s=spec.max_duration_s,
            network=spec.network,
            attached=spec.attached,
            image_tenant=snapshot.image_owner,
        )


def _nobody_listens(step: str, message: str, fraction: float | None) -> None: ...


@asynccontextmanager
async def open_sandboxes(
    supervisor: Supervisor,
    index: Index,
    find_snapshot: FindSnapshot,
    suspended: Sequence[SandboxInfo] = (),
    *,
    snapshots: Path,
    pools: Iterable[tuple[str, PoolSpec]] = (),
    refills_at_once: int = 1,
) -> AsyncIterator[Sandboxes]:
    """What an earlier daemon left has been swept before (``recover``), the *suspended* ones are adopted.

    *snapshots*: the folder of those. *pools*: those of the configuration, and whose each is. At the end every sandbox
    is terminated, but those that are suspended stay so.
    """
    await index.forget(time.time() - REMEMBER_S)
    async with anyio.create_task_group() as tasks:
        sandboxes = Sandboxes(supervisor, index, find_snapshot, tasks, snapshots, refills_at_once)
        await sandboxes.templates.load(suspended)
        for info in suspended:
            sandboxes.adopt(info)
        admission = supervisor.starter.admission
        admission.relievers[Relief.SUSPEND_IDLE] = IdleSuspender(sandboxes.live, admission, tasks)
        try:
            await sandboxes.pools.load(pools)
            yield sandboxes
        finally:
            with anyio.CancelScope(shield=True):
                await sandboxes.drain()
            tasks.cancel_scope.cancel()
