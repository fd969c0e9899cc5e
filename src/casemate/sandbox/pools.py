"""All pools of one daemon: what there is to be, who claims, what is seen of them. ``pool_keeper`` keeps them full."""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict
from typing import Any

import anyio
from prometheus_client.core import Metric

from casemate import errors
from casemate.audit import EventKind
from casemate.sandbox.handle import Handle
from casemate.sandbox.ids import new_id
from casemate.sandbox.index import Index
from casemate.sandbox.meters import Miss, counter, gauge, sum_up
from casemate.sandbox.pool import Pool
from casemate.sandbox.pool_keeper import Keeper
from casemate.sandbox.pool_member import Claim, Member
from casemate.sandbox.pool_spec import SHARED, PoolSpec
from casemate.sandbox.snapshot import Snapshot
from casemate.sandbox.states import Reason
from casemate.storage import PoolRow
from casemate.storage import pools as rows
from casemate.storage.pools import Origin

MAX_POOLS = 100  # of one tenant
MAX_DEAD = 3  # so many members may turn out dead at one claim: what is asked for may be what they die of
LOOK_UP_S = 5.0
# Of several pools, a create misses the one that could have served it best
_CLOSENESS = (Miss.EMPTY, Miss.VERSION, Miss.SHAPE, Miss.POLICY)


class Pools:
    """Made by ``open_sandboxes``; every method may be called from any task of the daemon."""

    def __init__(self, keeper: Keeper, index: Index) -> None:
        self._keeper = keeper
        self._index = index
        self._starter = keeper.supervisor.starter
        self._pools: dict[str, Pool] = {}
        self._used: dict[str, Pool] = {}  # by the id of the sandbox that uses up one of its kind
        keeper.ended = self.end_use
        keeper.meters.watch(self._families)

    # -------------------------------------------------------------------------- what there is to be

    async def load(self, configured: Iterable[tuple[str, PoolSpec]] = ()) -> None:
        """The pools that were set, and those of the configuration; what it does not name any more goes."""
        named = {(await self._put(tenant, spec, "config")).id for tenant, spec in configured}
        for row in await self._index.database.read(rows.listed):
            if row.origin == "config" and row.id not in named:
                await self._index.database.write(rows.remove, row.id)
            else:
                self._keep(row)

    async def put(self, tenant: str, spec: PoolSpec, *, actor: str = "host") -> dict[str, Any]:
        """Make the pool of *tenant* (``system``: for everybody) for that image and shape, or give it new numbers.

        Raises InvalidSpec, NotFound for the image, QuotaExceeded, StateConflict for one of the configuration's.
        """
        await self._check_image(tenant, spec)
        same = next((pool for pool in self._pools.values() if pool.is_for(tenant, spec)), None)
        if same is not None and same.row.origin == "config":
            raise errors.StateConflict(f"pool {same.row.id} stands in config.toml", hint="change it there and restart")
        if same is None and sum(pool.row.tenant == tenant for pool in self._pools.values()) >= MAX_POOLS:
            raise errors.QuotaExceeded(f"there are {MAX_POOLS} pools already", hint="remove one: casemate pool rm")
        detail = {"image": spec.image, "min_ready": spec.min_ready, "max_ready": spec.most}
        await self._starter.records.trail.record(
            EventKind.POOL_SET, tenant=tenant, actor=actor, subject=spec.image, detail=detail
        )
        return self._described(self._keep(await self._put(tenant, spec, "api")))

    async def remove(self, tenant: str, ref: str, *, shared: bool, actor: str = "host") -> dict[str, Any]:
        """Remove a pool by id or image; its ready members are ended, what was claimed lives on.

        *shared*: whether *tenant* may remove what is for everybody. Raises NotFound, InvalidSpec, Forbidden,
        StateConflict for one of the configuration's.
        """
        pool = self._find(tenant, ref)
        row = pool.row
        if row.tenant == SHARED and not shared:
            raise errors.Forbidden(f"pool {row.id} is for everybody and not yours to remove")
        if row.origin == "config":
            raise errors.StateConflict(f"pool {row.id} stands in config.toml", hint="remove it there and restart")
        await self._starter.records.trail.record(
            EventKind.POOL_REMOVED, tenant=row.tenant, actor=actor, subject=row.image, detail={"pool": row.id}
        )
        await self._index.database.write(rows.remove, row.id)
        if self._pools.pop(row.id, None) is not None:
            self._keeper.leave(pool)
            self._keeper.meters.forget_pool(*pool.labels)
        return self._described(pool)

    def listed(self, tenant: str) -> list[dict[str, Any]]:
        """A tenant's own and those for everybody, oldest first."""
        return [self._described(pool) for pool in self._visible(tenant)]

    def get(self, tenant: str, ref: str) -> dict[str, Any]:
        """By id, the beginning of one, or image. Raises NotFound, InvalidSpec when several have that image."""
        return self._described(self._find(tenant, ref))

    @property
    def kept(self) -> bool:
        """Whether there is a pool that a daemon has to be there for."""
        return bool(self._pools)

    async def drain(self) -> None:
        await self._keeper.drain()

    # ------------------------------------------------------------------------------------- claiming

    async def claim(self, claim: Claim, snapshot: Snapshot) -> Handle | None:
        """A running sandbox made of a ready member, the tenant's own before those for everybody; None: make one.

        Of members that turn out dead MAX_DEAD are passed over. Cancelled: the claimed one is ended.
        Raises StateConflict for a taken name, HostError.
        """
        serving = self._serving(claim.tenant, snapshot)
        why: Miss | None = None
        dead = 0
        for pool in serving:
            while isinstance(found := self._take(pool, snapshot, claim), Member):
                if await self._handed_over(pool, found):
                    return found.handle
                why, dead = Miss.DEAD, dead + 1
                if dead >= MAX_DEAD or isinstance(found.failure, errors.HostError | errors.CapacityError):
                    break  # it is not the member that is ill: the next ones would fare no better
            else:
                why = why or found
        if serving:
            closest = min(serving, key=lambda p: _CLOSENESS.index(p.why_missed(snapshot, claim.spec.network)))
            closest.meter.misses[why or closest.why_missed(snapshot, claim.spec.network)] += 1
        return None

    def count_use(self, handle: Handle, snapshot: Snapshot) -> None:
        """A sandbox of a kind that a pool is for: claimed from it or not, it is what the pool's size goes by."""
        network = handle.spec.network
        pools = self._serving(handle.info.tenant, snapshot)
        if fit := next((p for p in pools if (p.shape, p.row.network) == (snapshot.shape, network)), None):
            self._used[handle.info.id] = fit
            fit.demand.begin(time.monotonic())
            fit.changed.set()

    def end_use(self, handle: Handle) -> None:
        if pool := self._used.pop(handle.info.id, None):
            pool.demand.end(time.monotonic())

    def _serving(self, tenant: str, snapshot: Snapshot) -> list[Pool]:
        """Who has members of that image for *tenant*, its own pools first."""
        name = snapshot.image.partition("@")[0]
        found = [p for p in self._pools.values() if p.row.tenant in (tenant, SHARED) and p.image_name == name]
        return sorted(found, key=lambda pool: pool.row.tenant == SHARED)

    def _take(self, pool: Pool, snapshot: Snapshot, claim: Claim) -> Member | Miss | None:
        """One look, one take; nothing is awaited between. None: there is no such member."""
        member = pool.next_for(snapshot) if claim.spec.network == pool.row.network else None
        if member is None:
            return None
        admission, shape = self._starter.admission, snapshot.shape
        info = self._keeper.new_info(claim.tenant, claim.spec, snapshot)
        amount = admission.amount(snapshot.id, shape.memory_mib, shape.disk_mib)
        if not admission.grow_nowait(member.reservation, claim.tenant, amount):
            return Miss.FULL
        pool.take(member, claim, info)
        self._keeper.alive.discard(member)
        self._keeper.traffic.live[member.id] = member.handle
        return member

    async def _handed_over(self, pool: Pool, member: Member) -> bool:
        """Whether it runs; False where it turned out dead, and is gone."""
        handle = member.handle
        self.count_use(handle, member.snapshot)
        try:
            await member.settled.wait()
        except BaseException:  # also cancellation: the caller will never see this sandbox
            handle.ask_stop(Reason.BOOT_FAILED, "its create was cancelled or failed")
            raise
        if member.started:
            took_s = time.perf_counter() - member.born
            pool.meter.hits += 1
            pool.meter.claims_ms.append(took_s * 1000)
            self._keeper.meters.claims.labels(*pool.labels).observe(took_s)
            return True
        if member.failure is not None and not isinstance(member.failure, errors.RequestError):
            pool.meter.died += 1
            return False
        raise member.failure or errors.StateConflict(f"sandbox {member.id} was ended while it was claimed")

    # ----------------------------------------------------------------------------------- the steps

    async def _check_image(self, tenant: str, spec: PoolSpec) -> None:
        """Raises NotFound; a shape that has no snapshot yet is built in the background."""
        with suppress(errors.SnapshotMissing), anyio.move_on_after(LOOK_UP_S):
            async with self._keeper.find_snapshot(tenant, spec.image, spec.shape, build=False, progress=None):
                pass

    async def _put(self, tenant: str, spec: PoolSpec, origin: Origin) -> PoolRow:
        now = time.time()
        row = PoolRow(
            id=new_id(),
            tenant=tenant,
            host_id=self._index.host_id,
            image=spec.image,
            **asdict(spec.shape),
            network=spec.network,
            min_ready=spec.min_ready,
            max_ready=spec.max_ready,
            target_utilization=spec.target_utilization,
            schedule=spec.schedule,
            origin=origin,
            created_at=now,
            updated_at=now,
        )
        return await self._index.database.write(rows.put, row)

    def _keep(self, row: PoolRow) -> Pool:
        if pool := self._pools.get(row.id):
            pool.change(row)
        else:
            pool = self._pools[row.id] = Pool(row)
            self._keeper.tend(pool)
        return pool

    def _visible(self, tenant: str) -> list[Pool]:
        found = [pool for pool in self._pools.values() if pool.row.tenant in (tenant, SHARED)]
        return sorted(found, key=lambda pool: (pool.row.created_at, pool.row.id))

    def _find(self, tenant: str, ref: str) -> Pool:
        visible = self._visible(tenant)
        found = [pool for pool in visible if pool.row.id == ref] or [
            pool for pool in visible if pool.row.image == ref or (len(ref) >= 4 and pool.row.id.startswith(ref))
        ]
        if len(found) > 1:
            raise errors.InvalidSpec(f"{ref[:80]!r} means {len(found)} pools", hint="use the id: casemate pool ls")
        if not found:
            raise errors.NotFound(f"there is no pool {ref[:80]!r}", hint="casemate pool ls lists them")
        return found[0]

    # --------------------------------------------------------------------------- what is seen of it

    def _described(self, pool: Pool) -> dict[str, Any]:
        row, meter = pool.row, pool.meter
        return {
            "id": row.id,
            "tenant": row.tenant,
            "image": row.image,
            "version": pool.snapshot.image if pool.snapshot is not None else None,
            "vcpus": row.vcpus,
            "memory_mib": row.memory_mib,
            "disk_mib": row.disk_mib,
            "network": row.network,
            "min_ready": row.min_ready,
            "max_ready": row.max_ready,
            "target_utilization": row.target_utilization,
            "schedule": row.schedule,
            "origin": row.origin,
            "created_at": row.created_at,
            "wanted": pool.wanted,
            "ready": len(pool.ready),
            "making": len(pool.making),
            "claimed": pool.claimed,
            "in_use": pool.demand.in_use,
            "hits": meter.hits,
            "misses": {why.value: count for why, count in sorted(meter.misses.items())},
            "died": meter.died,
            "refill_failures": meter.failures,
            "refill": sum_up(meter.refills_ms),
            "claim": sum_up(meter.claims_ms),
            "failure": pool.failure,
        }

    def _families(self) -> Iterable[Metric]:
        pools = list(self._pools.values())
        names = ("pool", "image")

        def each(value: str) -> list[tuple[tuple[str, ...], float]]:
            return [(pool.labels, float(self._described(pool)[value])) for pool in pools]

        yield gauge("casemate_pool_ready", "Members that can be claimed", names, each("ready"))
        yield gauge("casemate_pool_wanted", "Members that are to be ready", names, each("wanted"))
        yield gauge("casemate_pool_making", "Members that are being made", names, each("making"))
        yield gauge("casemate_pool_claimed", "Sandboxes that live and were claimed from it", names, each("claimed"))
        yield counter("casemate_pool_hits", "Creates served by a member", names, each("hits"))
        yield counter("casemate_pool_deaths", "Members that ended by themselves", names, each("died"))
        yield counter("casemate_pool_refill_failures", "Members not made", names, each("refill_failures"))
        missed = [((*p.labels, why.value), float(count)) for p in pools for why, count in p.meter.misses.items()]
        yield counter("casemate_pool_misses", "Creates it did not serve", (*names, "reason"), missed)
