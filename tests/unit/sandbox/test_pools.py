"""Pools over the fake VMM: who gets which member, what is counted, who gives way, and that nothing stays."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest
from sandbox_world import SHAPE, TENANT, World, open_world
from tests.fakes.fake_vmm import FakeMachine

from casemate import errors
from casemate.sandbox import Amount, Handle, Relief, SandboxSpec, Shape, Snapshot, State, execs, pool_keeper
from casemate.sandbox.pool import CHECK_EVERY_S, Pool
from casemate.sandbox.pool_spec import SHARED, PoolSpec
from casemate.sandbox.pools import MAX_DEAD
from casemate.sandbox.recover import Recovered, recover

pytestmark = pytest.mark.usefixtures("each_stream")
OTHER = "u"


def spec(min_ready: int = 2, **more: Any) -> PoolSpec:
    return PoolSpec(**{"image": "python", "shape": SHAPE, "min_ready": min_ready, **more})


async def until(condition: Callable[[], object], within_s: float = 20) -> None:
    with anyio.fail_after(within_s):
        while not condition():
            await anyio.sleep(0.002)


def the_pool(world: World) -> Pool:
    return next(iter(world.sandboxes.pools._pools.values()))


async def filled(world: World, tenant: str = SHARED, pool_spec: PoolSpec | None = None) -> Pool:
    """A pool that has all it wants."""
    described = await world.sandboxes.pools.put(tenant, pool_spec or spec())
    pool = world.sandboxes.pools._pools[described["id"]]
    await until(lambda: pool.wanted == pool.row.min_ready and pool.current() == pool.wanted)
    return pool


async def create(world: World, tenant: str = TENANT, **more: Any) -> Handle:
    handle = await world.sandboxes.create(tenant, SandboxSpec(**{"image": "python", **more}))
    if tenant == TENANT:
        world.known.append(handle.info.id)
    return handle


def run(folder: Path, scenario: Callable[[World], Awaitable[None]], **world: Any) -> None:
    async def main() -> None:
        async with open_world(folder, **world) as opened:
            await scenario(opened)
        assert list(opened.folders.iterdir()) == []
        assert opened.admission.reserved == Amount(0, 0)

    anyio.run(main)


def test_a_claimed_member_is_a_sandbox_like_any_other(tmp_path: Path, no_trace: None) -> None:
    async def scenario(world: World) -> None:
        pool = await filled(world)
        member = pool.ready[0]
        assert member.handle.info.state is State.READY
        assert Path(f"/proc/{member.machine.pid}/stat").read_text().split()[2] == "T"
        handle = await create(world, name="mine", labels={"a": "b"}, env={"X": "y"}, max_duration_s=60)
        info = handle.info
        assert handle is member.handle
        assert (info.id, info.tenant, info.name, info.state) == (member.id, TENANT, "mine", State.RUNNING)
        assert (info.labels, info.max_duration_s) == ({"a": "b"}, 60)
        assert info.attestation is not None
        async with execs.start(handle.link, execs.ExecSpec(("echo", "hello"))) as running:
            assert isinstance(await running.read(), execs.Output)
        rows = {found.id: found for found in await world.index.listed(TENANT)}
        assert rows[info.id].state is State.RUNNING
        assert pool.meter.hits == 1
        await world.sandboxes.kill(TENANT, info.id)
        assert (await world.index.listed(TENANT))[0].state is State.TERMINATED
        world.known.clear()

    run(tmp_path, scenario)


def test_nobody_sees_or_reaches_what_is_ready(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        pool = await filled(world, TENANT)
        ready = pool.ready[0].id
        for tenant in (TENANT, OTHER):
            assert await world.sandboxes.list(tenant, include_terminated=True) == []
            with pytest.raises(errors.NotFound):
                world.sandboxes.get(tenant, ready)
            with pytest.raises(errors.NotFound):
                await world.sandboxes.info(tenant, ready)
            with pytest.raises(errors.NotFound):
                await world.sandboxes.kill(tenant, ready)
        assert world.sandboxes.count_live() == 0

    run(tmp_path, scenario)


def test_many_at_once_never_get_the_same_one(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        pool = await filled(world, pool_spec=spec(4))
        got: list[str] = []

        async def client() -> None:
            for _ in range(5):
                handle = await create(world)
                got.append(handle.info.id)
                await world.sandboxes.kill(TENANT, handle.info.id)

        async with anyio.create_task_group() as tasks:
            for _ in range(4):
                tasks.start_soon(client)
        assert len(set(got)) == len(got) == 20
        assert pool.meter.hits + sum(pool.meter.misses.values()) == 20
        assert pool.meter.hits >= 4
        world.known.clear()
        await until(lambda: pool.current() == pool.wanted)
        assert (pool.claimed, pool.demand.in_use) == (0, 0)

    run(tmp_path, scenario)


def test_a_tenants_own_pool_comes_before_the_one_for_everybody(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        everybodys = await filled(world)
        own = await filled(world, TENANT)
        await create(world, OTHER)
        assert (own.meter.hits, everybodys.meter.hits) == (0, 1)
        await create(world)
        assert (own.meter.hits, everybodys.meter.hits) == (1, 1)
        assert [p["id"] for p in world.sandboxes.pools.listed(OTHER)] == [everybodys.row.id]

    run(tmp_path, scenario)


def test_misses_say_why_and_no_pool_is_none(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        await create(world)  # there is no pool: not a miss
        pool = await filled(world)
        await create(world, memory_mib=256)
        assert pool.meter.misses == {"shape": 1}
        world.snapshot = replace(world.snapshot, id="s2", image="python@2")
        await create(world)
        assert pool.meter.misses == {"shape": 1, "version": 1}
        await create(world, OTHER)
        world.snapshot = replace(world.snapshot, image="other@1")
        await create(world)
        assert sum(pool.meter.misses.values()) == 3
        assert pool.meter.hits == 0

    run(tmp_path, scenario)


def test_it_follows_its_reference_and_the_old_go_when_the_new_are_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_keeper, "FOLLOW_S", 0.0)

    async def scenario(world: World) -> None:
        pool = await filled(world)
        old = list(pool.ready)
        fewest: list[int] = []
        world.snapshot = replace(world.snapshot, id="s2", image="python@2")

        def replaced() -> bool:
            fewest.append(len(pool.ready))
            return pool.versions() == {"python@2": 2}

        await until(replaced)
        assert min(fewest) >= 2
        await until(lambda: all(member.handle.ended.is_set() for member in old))
        assert pool.meter.died == 0

    run(tmp_path, scenario)


def test_one_that_died_is_replaced_and_not_handed_out(tmp_path: Path, no_trace: None) -> None:
    async def scenario(world: World) -> None:
        pool = await filled(world)
        killed = [member.id for member in pool.ready]
        for member in pool.ready:
            os.kill(member.machine.pid, signal.SIGKILL)
        handle = await create(world)  # before anybody has noticed
        assert handle.info.id not in killed
        await until(lambda: pool.current() == 2 and pool.meter.died == 2)
        assert pool.meter.hits + sum(pool.meter.misses.values()) == 1

    run(tmp_path, scenario)


def test_one_that_is_silent_is_found_out_and_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("casemate.sandbox.pool_member.CHECK_S", 0.1)

    async def scenario(world: World) -> None:
        pool = await filled(world)
        honest, silent = pool.ready
        assert isinstance(silent.machine, FakeMachine)
        silent.machine.agent.running = anyio.Event()  # type: ignore[assignment]  # thaw sets it; what follows clears it
        silent.machine._paused = True  # its vCPUs stand still whatever is done to its process
        honest.heard_at -= CHECK_EVERY_S
        silent.heard_at -= CHECK_EVERY_S + 1
        pool.changed.set()
        await until(silent.handle.ended.is_set)
        await until(lambda: pool.current() == 2)
        assert honest in pool.ready
        assert pool.meter.died == 1
        pool.changed.set()
        await until(lambda: pool.most_doubtful(honest.heard_at + CHECK_EVERY_S - 0.001) is None)

    run(tmp_path, scenario)


def test_a_member_that_cannot_be_made_is_tried_again_later_and_later(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        whole = world.snapshot
        world.snapshot = replace(whole, root=tmp_path / "nowhere")
        await world.sandboxes.pools.put(SHARED, spec(1))
        pool = the_pool(world)
        await until(lambda: pool.failure)
        assert "nowhere" in (pool.failure or "")
        failures = pool.meter.failures
        assert failures == 1
        world.snapshot = whole
        await until(lambda: pool.current() == 1 and pool.failure is None)

    run(tmp_path, scenario)


@pytest.mark.parametrize("failure", [errors.VmmRefused("no such machine"), KeyError("kernel_release")])
def test_what_cannot_be_looked_up_or_built_is_tried_again_later_and_later(tmp_path: Path, failure: Exception) -> None:
    async def scenario(world: World) -> None:
        keeper, tried = world.sandboxes.pools._keeper, 0

        @asynccontextmanager
        async def failing(*args: Any, **named: Any) -> AsyncIterator[Snapshot]:
            nonlocal tried
            tried += 1
            raise failure
            yield world.snapshot

        whole, running = keeper.find_snapshot, await create(world)
        await world.sandboxes.pools.put(SHARED, spec(1))
        pool = the_pool(world)
        keeper.find_snapshot = failing  # nothing was awaited since it is there
        await until(lambda: tried)
        for _ in range(20):
            pool.changed.set()
            await anyio.sleep(0.01)
        assert (tried, pool.meter.failures) == (1, 1)
        assert str(failure.args[0]) in (pool.failure or "")
        keeper.find_snapshot = whole
        await until(lambda: pool.current() == 1)
        assert running.info.state is State.RUNNING

    run(tmp_path, scenario)


def test_a_wish_that_members_die_of_does_not_cost_all_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(world: World) -> None:
        pool = await filled(world, pool_spec=spec(MAX_DEAD + 2))
        left = list(pool.ready)[MAX_DEAD:]

        async def die(*args: Any, **named: Any) -> None:
            raise errors.AgentSilent("the hand-shake was not answered")

        with monkeypatch.context() as patched:
            patched.setattr("casemate.sandbox.pool_member.introduce", die)
            await create(world)  # it is restored for it
        assert (pool.meter.hits, pool.meter.misses, pool.meter.died) == (0, {"dead": 1}, MAX_DEAD)
        assert [member for member in pool.ready if member in left] == left

    run(tmp_path, scenario)


def test_a_fault_of_ours_in_a_member_ends_nobody_elses_sandbox(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_trace: None
) -> None:
    async def scenario(world: World) -> None:
        running = await create(world)

        async def fault(*args: Any) -> None:
            raise ZeroDivisionError("ours")

        with monkeypatch.context() as patched:
            patched.setattr("casemate.sandbox.pool_member.warm", fault)
            await world.sandboxes.pools.put(SHARED, spec(1))
            pool = the_pool(world)
            await until(lambda: pool.failure)
            assert "ours" in (pool.failure or "")
        assert running.info.state is State.RUNNING
        await until(lambda: pool.current() == 1)

    run(tmp_path, scenario)


def test_the_name_of_one_whose_end_could_not_be_recorded_can_be_claimed(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        await filled(world, pool_spec=spec(1))
        records = world.sandboxes._supervisor.records
        ended = replace((await create(world, name="mine")).info)
        await world.sandboxes.kill(TENANT, ended.id)
        world.known.remove(ended.id)
        await until(lambda: the_pool(world).current() == 1)
        await world.index.put(ended)  # as if a full disk had refused to take its end down
        records.unrecorded[ended.id] = replace(ended, state=State.TERMINATED)
        assert (await create(world, name="mine")).info.state is State.RUNNING
        assert not records.unrecorded
        assert the_pool(world).meter.hits == 2

    run(tmp_path, scenario)


def test_a_create_that_does_not_fit_gets_the_room_of_ready_members(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        pool = await filled(world, pool_spec=spec(2))
        assert world.admission.reserved == pool.ready[0].reserved + pool.ready[1].reserved
        await create(world, memory_mib=520)  # 48 and 130 of 300; the members have 48 each, and it does not fit beside
        assert not pool.ready or len(pool.ready) == 1
        assert world.admission.pressed
        assert (pool.failure, pool.meter.failures, pool.meter.died) == (None, 0, 0)

    run(tmp_path, scenario, room=2)


def test_what_is_being_made_is_given_up_before_what_is_ready(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        pool = await filled(world, pool_spec=spec(1))
        asked = world.admission.relievers
        pool.making.add(pool.ready[0])  # as if it were one that is not ready yet
        kept, pool.ready = pool.ready.popleft(), type(pool.ready)()
        assert asked[Relief.STOP_REFILLING_POOLS](Amount(1, 0)) == kept.reserved
        assert asked[Relief.SHRINK_POOLS](Amount(0, 0)) == Amount(0, 0)
        assert asked[Relief.STOP_REFILLING_POOLS](Amount(1, 0)) == kept.reserved  # it is on its way
        await kept.handle.ended.wait()
        assert asked[Relief.STOP_REFILLING_POOLS](Amount(0, 0)) == Amount(0, 0)

    run(tmp_path, scenario)


def test_without_room_for_what_its_guest_may_need_a_member_is_not_claimed(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        pool = await filled(world, pool_spec=spec(1))
        async with world.admission.reserved_for("z", world.admission.budget - pool.ready[0].reserved):
            with pytest.raises(errors.HostFull):
                await create(world)
            assert pool.meter.misses == {"full": 1}
            assert pool.meter.hits == 0

    run(tmp_path, scenario)


def test_a_taken_name_is_refused_and_costs_no_member(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        pool = await filled(world)
        await create(world, name="mine")
        await until(lambda: pool.current() == 2)
        before = list(pool.ready)
        with pytest.raises(errors.StateConflict, match="mine"):
            await create(world, name="mine")
        assert list(pool.ready) == before

    run(tmp_path, scenario)


def test_a_claim_that_is_given_up_ends_the_member(tmp_path: Path, no_trace: None) -> None:
    async def scenario(world: World) -> None:
        pool = await filled(world)
        given_up = pool.ready[0]
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(create, world)
            await until(lambda: given_up.claim is not None)
            tasks.cancel_scope.cancel()
        await until(given_up.handle.ended.is_set)
        await until(lambda: pool.current() == 2)
        assert given_up not in pool.ready
        assert (await world.sandboxes.list(TENANT)) == []
        assert pool.demand.in_use == 0

    run(tmp_path, scenario)


def test_on_record_a_member_is_claimed_once(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        handle = await create(world)
        with pytest.raises(errors.StateConflict, match="not ready"):
            await world.index.database.write(world.index.claiming(handle.info))

    run(tmp_path, scenario)


def test_a_pool_is_given_new_numbers_and_removed(tmp_path: Path, no_trace: None) -> None:
    async def scenario(world: World) -> None:
        pools = world.sandboxes.pools
        pool = await filled(world, pool_spec=spec(3))
        members = list(pool.ready)
        assert (await pools.put(SHARED, spec(1)))["id"] == pool.row.id
        await until(lambda: len(pool.ready) == 1)
        assert pool.ready[0] is members[0]
        handle = await create(world)
        with pytest.raises(errors.Forbidden):
            await pools.remove(TENANT, pool.row.id, shared=False)
        await pools.remove(TENANT, "python", shared=True)
        assert pools.listed(TENANT) == []
        await until(lambda: not pool.members)
        assert handle.info.state is State.RUNNING
        with pytest.raises(errors.NotFound):
            pools.get(TENANT, pool.row.id)

    run(tmp_path, scenario)


def test_pools_outlive_a_daemon_and_what_it_left_is_ended(tmp_path: Path, no_trace: None) -> None:
    async def scenario(world: World) -> None:
        pools = world.sandboxes.pools
        await filled(world)
        ready = {info.id for info in await world.index.unfinished()}
        assert {info.state for info in await world.index.unfinished()} == {State.READY}
        # another daemon on the same home finds the rows; the folders are this one's, which ends them itself
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        await recover(Recovered(), {}, world.index, elsewhere, world.sandboxes._supervisor.records.trail)
        assert not ready & {info.id for info in await world.index.unfinished()}
        await pools.load([(SHARED, spec(1, image="other"))])
        assert [(p["image"], p["origin"]) for p in pools.listed(TENANT)] == [("python", "api"), ("other", "config")]
        with pytest.raises(errors.StateConflict, match=r"config\.toml"):
            await pools.remove(TENANT, "other", shared=True)
        with pytest.raises(errors.StateConflict, match=r"config\.toml"):
            await pools.put(SHARED, spec(2, image="other"))

    run(tmp_path, scenario)


def test_what_is_measured_is_told(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        pool = await filled(world)
        await create(world)
        await create(world, memory_mib=256)
        described = world.sandboxes.pools.get(TENANT, pool.row.id)
        assert (described["hits"], described["misses"], described["claimed"]) == (1, {"shape": 1}, 1)
        assert described["claim"]["p50_ms"] > 0
        text = world.sandboxes.meters.text().decode()
        of = f'{{image="python",pool="{pool.row.id}"'
        for line in (
            f"casemate_pool_hits_total{of}}} 1.0",
            f'casemate_pool_misses_total{of},reason="shape"}} 1.0',
            f"casemate_pool_claim_seconds_count{of}}} 1.0",
            'casemate_sandboxes{state="running"} 2.0',
            'casemate_sandbox_creates_total{result="created"} 2.0',
            "casemate_sandbox_restore_seconds_count 1.0",
        ):
            assert line in text.splitlines(), text

    run(tmp_path, scenario)


def test_a_shape_of_its_own(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        pool = await filled(world, pool_spec=spec(1, shape=Shape(1, 256, 64)))
        handle = await create(world, memory_mib=256)
        assert handle.info.memory_mib == 256
        assert pool.meter.hits == 1

    run(tmp_path, scenario)


def test_a_claimed_one_is_suspended_like_any_other(tmp_path: Path, no_trace: None) -> None:
    async def scenario(world: World) -> None:
        pool = await filled(world)
        handle = await create(world)
        assert (await handle.suspend()).state is State.SUSPENDED
        assert pool.claimed == 1
        await world.sandboxes.kill(TENANT, handle.info.id)
        world.known.clear()
        await until(lambda: (pool.claimed, pool.demand.in_use) == (0, 0))

    run(tmp_path, scenario)


def test_while_it_stops_nothing_is_claimed(tmp_path: Path, no_trace: None) -> None:
    async def scenario(world: World) -> None:
        pool = await filled(world)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(world.sandboxes.drain)
            await until(lambda: not pool.ready)
            with pytest.raises(errors.HostFull, match="stopping"):
                await world.sandboxes.create(TENANT, SandboxSpec("python"))
        assert pool.meter.hits == 0
        assert await world.index.unfinished() == []

    run(tmp_path, scenario)
