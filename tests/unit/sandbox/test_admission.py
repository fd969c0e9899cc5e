"""Who gets in, who waits and who is told to come again: by amounts alone, without a machine."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.errors import HostFull, LeakedResource, Retry
from casemate.sandbox.admission import ASSUMED_CLONE_MIB, Admission, Amount, Relief

ONE = Amount(100, 10)


def admission(room: int = 5, wait_s: float = 0) -> Admission:
    return Admission(Amount(room * 100, room * 10), commit_ratio=0.25, wait_s=wait_s)


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        with anyio.fail_after(20):
            await scenario()

    anyio.run(main)


async def settle() -> None:
    for _ in range(5):
        await anyio.lowlevel.checkpoint()


def test_with_room_for_five_the_sixth_is_refused_and_told_when_to_come_again() -> None:
    async def scenario() -> None:
        desk = admission()
        async with AsyncExitStack() as held:
            for _ in range(5):
                await held.enter_async_context(desk.reserved_for("t", ONE))
            with pytest.raises(HostFull, match="this host is full") as raised:
                await held.enter_async_context(desk.reserved_for("t", ONE))
            assert raised.value.retry is Retry.SAFE
            assert raised.value.evidence["retry_after_s"] > 0
            assert desk.reserved == desk.budget
        assert desk.reserved == Amount(0, 0)

    run(scenario)


@pytest.mark.parametrize("amount", [Amount(501, 1), Amount(1, 51)])
def test_what_never_fits_does_not_wait(amount: Amount) -> None:
    async def scenario() -> None:
        with pytest.raises(HostFull, match="in all"):
            async with admission(wait_s=3600).reserved_for("t", amount):
                pass

    run(scenario)


def test_within_a_tenant_first_come_and_between_tenants_in_turn() -> None:
    async def scenario() -> None:
        desk, order = admission(room=1, wait_s=10), list[str]()

        async def come(tenant: str, number: int) -> None:
            async with desk.reserved_for(tenant, ONE):
                order.append(f"{tenant}{number}")
                await settle()

        async with anyio.create_task_group() as tasks, desk.reserved_for("z", ONE):
            for tenant, number in [("a", 1), ("a", 2), ("a", 3), ("a", 4), ("b", 1), ("b", 2), ("c", 1)]:
                tasks.start_soon(come, tenant, number)
                await settle()
        assert order == ["a1", "b1", "c1", "a2", "b2", "a3", "a4"]

    run(scenario)


def test_one_that_does_not_fit_keeps_its_own_tenant_waiting_and_nobody_else() -> None:
    async def scenario() -> None:
        desk, order = admission(room=2, wait_s=10), list[str]()

        async def come(tenant: str, amount: Amount) -> None:
            async with desk.reserved_for(tenant, amount):
                order.append(f"{tenant}{amount.memory_mib}")
                await settle()

        async with anyio.create_task_group() as tasks, AsyncExitStack() as held:
            await held.enter_async_context(desk.reserved_for("z", ONE))
            for tenant, amount in [("a", Amount(200, 10)), ("a", ONE), ("b", ONE)]:
                tasks.start_soon(come, tenant, amount)
                await anyio.lowlevel.checkpoint()
            await settle()
            assert order == ["b100"]
            assert desk.to_json()["waiting"] == 2
        assert order == ["b100", "a200", "a100"]

    run(scenario)


def test_given_up_while_it_waits_it_leaves_nothing_and_the_next_gets_in() -> None:
    async def scenario() -> None:
        desk = admission(room=1, wait_s=3600)
        async with desk.reserved_for("t", ONE):
            with anyio.move_on_after(0.01):
                async with desk.reserved_for("t", ONE):
                    pytest.fail("there was no room")
            assert desk.to_json()["waiting"] == 0
        async with desk.reserved_for("u", ONE):
            assert desk.reserved == ONE

    run(scenario)


def test_what_leaks_stays_reserved() -> None:
    async def scenario() -> None:
        desk = admission()
        with pytest.raises(LeakedResource):
            async with desk.reserved_for("t", ONE):
                raise LeakedResource("a machine that did not die")
        assert desk.reserved == ONE

    run(scenario)


def test_it_reserves_a_measured_clone_and_a_part_of_the_guest() -> None:
    desk = admission()
    assert desk.amount("s", 512, 1024) == Amount(ASSUMED_CLONE_MIB + 128, 256)
    desk.learn("s", 30)
    desk.learn("s", 25)
    assert desk.amount("s", 512, 1024) == Amount(30 + 128, 256)
    whole = Admission(Amount(1, 1), commit_ratio=1.0, wait_s=0)
    assert whole.amount("s", 512, 1024) == Amount(ASSUMED_CLONE_MIB + 512, 1024)


def test_the_order_of_relief_is_that_of_the_design() -> None:
    assert list(Relief) == ["stop-refilling-pools", "shrink-pools", "suspend-idle", "refuse-creates"]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 600), st.integers(1, 60), st.booleans()), max_size=30))
def test_never_more_than_there_is_and_in_the_end_nothing(asked: list[tuple[str, int, int, bool]]) -> None:
    async def scenario() -> None:
        desk = admission(wait_s=0.001)

        async def come(tenant: str, amount: Amount, give_up: bool) -> None:
            with anyio.move_on_after(0 if give_up else 5):
                try:
                    async with desk.reserved_for(tenant, amount):
                        assert desk.reserved.fits(desk.budget)
                        await settle()
                except HostFull:
                    return

        async with anyio.create_task_group() as tasks:
            for tenant, memory_mib, disk_mib, give_up in asked:
                tasks.start_soon(come, tenant, Amount(memory_mib, disk_mib), give_up)
        assert desk.reserved == Amount(0, 0)
        assert desk.to_json()["waiting"] == 0

    run(scenario)


def test_who_does_not_fit_gets_the_room_of_what_nobody_uses() -> None:
    async def scenario() -> None:
        desk, ended = admission(room=3), anyio.Event()
        asked: list[Amount] = []

        def shrink(missing: Amount) -> Amount:
            asked.append(missing)
            ended.set()
            return ONE

        desk.relievers[Relief.SHRINK_POOLS] = shrink

        async def ready(*, task_status: anyio.abc.TaskStatus[None]) -> None:
            async with desk.reserved_ready("system", ONE, beside=ONE):
                task_status.started()
                await ended.wait()

        async with anyio.create_task_group() as tasks, AsyncExitStack() as held:
            await tasks.start(ready)
            for _ in range(2):
                await held.enter_async_context(desk.reserved_for("t", ONE))
            assert not desk.pressed
            await held.enter_async_context(desk.reserved_for("t", ONE))
            assert asked == [ONE]
            assert desk.pressed

    run(scenario)


def test_a_later_relief_is_asked_only_for_what_the_earlier_did_not_give() -> None:
    async def scenario() -> None:
        desk, asked = admission(room=1), list[tuple[Relief, Amount]]()
        for relief in (Relief.SUSPEND_IDLE, Relief.STOP_REFILLING_POOLS, Relief.SHRINK_POOLS):

            def give(missing: Amount, relief: Relief = relief) -> Amount:
                asked.append((relief, missing))
                return Amount(40, 10)

            desk.relievers[relief] = give
        asked_last = desk.relievers[Relief.SUSPEND_IDLE]
        desk.relievers[Relief.SUSPEND_IDLE] = lambda missing: asked_last(missing) - Amount(40, 10)  # gives nothing
        async with desk.reserved_for("t", ONE):
            with pytest.raises(HostFull):
                async with desk.reserved_for("t", ONE):
                    pytest.fail("there was no room")
        assert asked == [
            (Relief.STOP_REFILLING_POOLS, ONE),
            (Relief.SHRINK_POOLS, Amount(60, 0)),
            (Relief.SUSPEND_IDLE, Amount(20, -10)),
        ]

    run(scenario)


def test_what_nobody_asked_for_leaves_room_for_who_comes_next() -> None:
    async def scenario() -> None:
        desk = admission(room=2)
        async with desk.reserved_ready("system", ONE, beside=ONE):
            with pytest.raises(HostFull, match="keep a sandbox ready"):
                async with desk.reserved_ready("system", ONE, beside=ONE):
                    pytest.fail("there was no room")
        assert desk.reserved == Amount(0, 0)

    run(scenario)


def test_a_claim_grows_what_is_reserved_and_all_of_it_is_given_back() -> None:
    async def scenario() -> None:
        desk = admission(room=3)
        async with desk.reserved_ready("system", ONE, beside=ONE) as reservation:
            assert not desk.grow_nowait(reservation, "t", Amount(301, 10))
            assert desk.reserved == ONE
            assert desk.grow_nowait(reservation, "t", Amount(250, 30))
            assert desk.reserved == Amount(250, 30)
        assert desk.reserved == Amount(0, 0)

    run(scenario)


def test_a_claim_does_not_pass_others_of_its_tenant_who_wait() -> None:
    async def scenario() -> None:
        desk = admission(room=3, wait_s=5)
        async with (
            desk.reserved_ready("system", ONE, beside=ONE) as reservation,
            anyio.create_task_group() as tasks,
        ):

            async def wait_for_more() -> None:
                async with desk.reserved_for("t", Amount(250, 20)):
                    pytest.fail("there was no room")

            tasks.start_soon(wait_for_more)
            await settle()
            assert not desk.grow_nowait(reservation, "t", Amount(110, 10))
            assert desk.grow_nowait(reservation, "u", Amount(110, 10))
            tasks.cancel_scope.cancel()

    run(scenario)
