"""Keeps pools as full as they want to be: makes members, ends them, asks now and then whether they live.

Each pool has a task of its own; members are made a few at a time over all of them (``pool_refills_at_once``), in a
quiet moment, and not at all while somebody does not find room. A member's own task makes it and ends it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import reduce

import anyio
import structlog
from anyio.abc import TaskGroup

from casemate import errors
from casemate.sandbox.admission import Amount, Relief
from casemate.sandbox.handle import Handle
from casemate.sandbox.meters import Meters
from casemate.sandbox.pool import Pool
from casemate.sandbox.pool_member import Member, MemberSupervisor
from casemate.sandbox.pool_spec import SHARED
from casemate.sandbox.snapshot import FindSnapshot, Snapshot
from casemate.sandbox.spec import SandboxInfo, SandboxSpec
from casemate.sandbox.states import Reason, State

log = structlog.get_logger()
TICK_S = 1.0  # so often a pool is looked at when nothing happens to it
FOLLOW_S = 5.0  # so often it is looked up what its reference means
PATIENCE_S = 1.0  # how long a full pool waits for a quiet moment before a member is made; an empty one does not wait
QUIET_S = 0.1
LOOK_AGAIN_S = 0.02
MAKE_S = 60.0
DRAIN_S = 40.0
NewInfo = Callable[[str, SandboxSpec, Snapshot], SandboxInfo]
"""The pending sandbox of a tenant's wish; raises StateConflict when its name is taken."""


@dataclass(eq=False)
class Traffic:
    """What goes on that making members would be in the way of."""

    creating: int = 0
    created_at: float = -math.inf  # when the last create was over
    live: dict[str, Handle] = field(default_factory=dict)

    def quiet_s(self) -> float:
        """For how long nobody has asked for anything; what follows a create is worth waiting for, too."""
        if self.creating:
            return 0.0
        used_at = max((handle.usage.used_at for handle in self.live.values()), default=-math.inf)
        return time.monotonic() - max(used_at, self.created_at)


@dataclass(eq=False)
class Keeper:
    """*find_snapshot* builds what a pool needs and has not; members and who looks after them live in *tasks*."""

    supervisor: MemberSupervisor
    find_snapshot: FindSnapshot
    new_info: NewInfo
    traffic: Traffic
    meters: Meters
    tasks: TaskGroup
    refills_at_once: int = 1
    ended: Callable[[Handle], None] = lambda handle: None
    alive: set[Member] = field(default_factory=set)  # unclaimed, also those of pools that are no more
    _tending: dict[Pool, anyio.CancelScope] = field(default_factory=dict)
    _draining: bool = False

    def __post_init__(self) -> None:
        self._turn = anyio.Semaphore(self.refills_at_once)
        relievers = self.supervisor.starter.admission.relievers
        relievers[Relief.STOP_REFILLING_POOLS] = self._stop_refilling
        relievers[Relief.SHRINK_POOLS] = self._shrink_for

    # ---------------------------------------------------------------------------- coming and going

    def tend(self, pool: Pool) -> None:
        """From now on it is kept full."""
        if not self._draining:
            scope = self._tending[pool] = anyio.CancelScope()
            self.tasks.start_soon(self._tend, pool, scope)

    def leave(self, pool: Pool) -> None:
        """From now on it is not, and its members are ended."""
        if scope := self._tending.pop(pool, None):  # none where it came while everything was being ended
            scope.cancel()
        for member in list(pool.members):
            pool.end(member, "its pool was removed")

    async def drain(self) -> None:
        """No new members; end all there are."""
        self._draining = True
        for scope in self._tending.values():
            scope.cancel()
        for pool in self._tending:
            pool.close()
        for member in self.alive:
            member.handle.ask_stop(Reason.DAEMON_STOPPED, "the daemon was stopped")
        with anyio.move_on_after(DRAIN_S):
            for member in list(self.alive):
                await member.handle.ended.wait()

    async def _tend(self, pool: Pool, scope: anyio.CancelScope) -> None:
        with scope:
            while True:
                try:
                    await self._look_after(pool)
                except errors.CasemateError as error:
                    pool.failed(error.message, passes=isinstance(error, errors.CapacityError))
                    log.warning("a pool could not be filled", pool=pool.row.id, image=pool.row.image, error=str(error))
                except Exception as fault:  # one pool's trouble must not end everybody's sandboxes
                    pool.failed(f"a fault of ours: {fault!r}", passes=False)
                    log.error("a pool could not be looked after", pool=pool.row.id, error=repr(fault))
                with anyio.move_on_after(TICK_S):
                    await pool.changed.wait()
                pool.changed.clear()

    async def _look_after(self, pool: Pool) -> None:
        now_s = time.monotonic()
        pool.settle(now_s, datetime.now())
        pool.shrink()
        if doubtful := pool.most_doubtful(now_s):
            doubtful.ask_whether_it_lives()
        if not pool.may_try():  # also what its reference means may be what fails: a build takes a processor for a while
            return
        lacks = pool.missing() > 0 and not self.supervisor.starter.admission.pressed
        if not lacks and (now_s - pool.followed_at < FOLLOW_S or not (pool.wanted or pool.ready)):
            return
        tenant, image, shape = pool.row.tenant, pool.row.image, pool.shape
        async with self.find_snapshot(tenant, image, shape, build=True, progress=None) as snapshot:
            pool.follow(snapshot)
            if not lacks:
                return
            await self._until_quiet(pool)
            async with self._turn:
                if pool.missing() > 0:
                    await self._make(pool, snapshot)
        pool.changed.set()  # it may want another one

    async def _until_quiet(self, pool: Pool) -> None:
        """Not beside what somebody waits for; the emptier the pool, the sooner all the same."""
        with anyio.move_on_after(PATIENCE_S * pool.current() / max(1, pool.wanted)):
            while self.traffic.quiet_s() < QUIET_S:
                await anyio.sleep(LOOK_AGAIN_S)

    # ----------------------------------------------------------------------------- making a member

    async def _make(self, pool: Pool, snapshot: Snapshot) -> None:
        spec, began = SandboxSpec(pool.row.image, network=pool.row.network), time.monotonic()
        info = replace(self.new_info(SHARED, spec, snapshot), state=State.READY)
        member = self._member(Handle(info, spec, "pool"), snapshot)
        pool.making.add(member)
        self.alive.add(member)
        self.tasks.start_soon(self._live, pool, member)
        try:
            with anyio.fail_after(MAKE_S):
                await member.ready.wait()
        except TimeoutError as error:
            pool.end(member, f"it was not ready within {MAKE_S:g} s")
            raise errors.BootTimeout(f"a member of pool {pool.row.id} was not ready within {MAKE_S:g} s") from error
        except BaseException:
            pool.end(member, "its pool is not looked after any more")
            raise
        if member.failure is not None and not member.offered and not member.given_up:
            raise member.failure
        if member.offered:
            took_s = time.monotonic() - began
            pool.succeeded(took_s)
            self.meters.refills.labels(*pool.labels).observe(took_s)

    def _member(self, handle: Handle, snapshot: Snapshot) -> Member:
        return Member(handle, self.supervisor.supervisor.place_of(handle), _snapshot=snapshot)

    async def _live(self, pool: Pool, member: Member) -> None:
        """A member's own task, also when it is somebody's sandbox."""
        try:
            await self.supervisor.supervise(member, pool)
        finally:
            self.traffic.live.pop(member.id, None)
            self.alive.discard(member)
            pool.gone(member)
            self.ended(member.handle)

    # -------------------------------------------------------------------------------- giving way

    def _stop_refilling(self, missing: Amount) -> Amount:
        """What is being made is given up; what comes of it, and of all that is ending already."""
        coming = _sum(member.reserved for pool in self._tending for member in pool.ending)
        for pool in self._tending:
            for member in list(pool.making):
                if (missing - coming).is_nothing():
                    return coming
                coming += member.reserved
                pool.end(member, "its room was needed")
        return coming

    def _shrink_for(self, missing: Amount) -> Amount:
        """Ready members end, of the fullest pool first; the newest, for it has been of least use."""
        coming = Amount(0, 0)
        while not (missing - coming).is_nothing():
            fullest = max(self._tending, key=lambda pool: len(pool.ready), default=None)
            if fullest is None or not fullest.ready:
                break
            member = fullest.ready[-1]
            coming += member.reserved
            fullest.end(member, "its room was needed")
        return coming


def _sum(amounts: Iterable[Amount]) -> Amount:
    return reduce(Amount.__add__, amounts, Amount(0, 0))
