"""When a sandbox is parked, woken, idle: the real policy, handle and link over a guest and a VMM of this process."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest
from tests.fakes.fake_vmm import FakeMachine
from tests.unit.sandbox.test_spec import INFO

from casemate import errors
from casemate.sandbox import Handle, Link, SandboxSpec, State, parking
from casemate.sandbox.rest import Rest
from casemate.sandbox.states import Reason
from casemate.vmm import MachineSpec

IDLE: dict[str, Any] = {
    "execs_running": 0, "terminals_running": 0, "cells_running": 0, "user_cpu_ms": 5, "next_timer_ms": None,
}  # fmt: skip
PARK_S = 0.1
WORK: list[dict[str, int]] = [{"execs_running": 1}, {"cells_running": 1}, {"next_timer_ms": 2500}, {"next_timer_ms": 0}]


@dataclass
class World:
    handle: Handle
    machine: FakeMachine

    def says(self, **more: object) -> None:
        self.machine.agent.activity = IDLE | more

    @property
    def asked(self) -> int:
        return self.machine.agent.asked

    @property
    def frozen(self) -> bool:
        return Path(f"/proc/{self.machine.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


@asynccontextmanager
async def open_world(*, near_s: float = 1.0, link: type[Link] = Link, **wish: Any) -> AsyncIterator[World]:
    machine = FakeMachine(MachineSpec("g", 1, 128, ()), {})
    talk = link("g", silence_s=0.8)
    handle = Handle(replace(INFO, state=State.RUNNING), SandboxSpec(**{"idle_timeout_s": None, **wish}))
    handle._link, handle._machine = talk, machine  # type: ignore[assignment]
    world = World(handle, machine)
    world.says()
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(talk.run, machine.stream)
            tasks.start_soon(Rest(handle, near_s=near_s).run)
            yield world
            tasks.cancel_scope.cancel()
    finally:
        with anyio.CancelScope(shield=True):
            await machine.close()


def scenario(*acts: Callable[[World], Awaitable[None]], **wish: Any) -> None:
    """Each in a world of its own, at once: most of it is waiting."""

    async def main(act: Callable[[World], Awaitable[None]]) -> None:
        async with open_world(**wish) as world:
            await act(world)

    async def all_of_them() -> None:
        with anyio.fail_after(20):
            async with anyio.create_task_group() as tasks:
                for act in acts:
                    tasks.start_soon(main, act)

    anyio.run(all_of_them)


async def until(condition: Callable[[], object], within_s: float = 5) -> None:
    with anyio.fail_after(within_s):
        while not condition():
            await anyio.sleep(0.005)


async def never(condition: Callable[[], object], for_s: float = 4 * PARK_S) -> None:
    ends_at = time.monotonic() + for_s
    while time.monotonic() < ends_at:
        assert not condition()
        await anyio.sleep(0.005)


async def call(handle: Handle) -> None:
    async with handle.reach() as link:
        await link.ping(timeout_s=2)


def test_with_nothing_to_do_it_is_frozen_and_a_call_thaws_it() -> None:
    async def act(world: World) -> None:
        await never(lambda: world.handle.parked, PARK_S * 0.9)
        for round in (1, 2):
            await until(lambda: world.handle.parked)
            assert world.frozen
            assert world.asked == 2 * round
            await call(world.handle)
            assert not world.frozen
            assert not world.handle.parked

    scenario(act, park_after_s=PARK_S)


def test_who_is_parked_is_not_asked_and_not_missed() -> None:
    async def act(world: World) -> None:
        async with world.handle.reach() as link, link.open("exec", {"op": "start", **EXEC}):
            with world.handle.usage.looking_on():
                await until(lambda: world.handle.parked)
                asked = world.asked
                await never(lambda: world.handle.link.failure, 1.2)  # silence_s is 0.8, and a channel is open
                assert world.asked == asked
            await world.handle.awake()
            await never(lambda: world.handle.link.failure, 0.5)

    scenario(act, park_after_s=PARK_S)


EXEC = {"exec_id": "e", "argv": ["cat"], "stdin": True, "on_disconnect": "kill"}


def test_it_is_not_parked_while_it_has_to_do() -> None:
    async def act(work: dict[str, int], world: World) -> None:
        world.says(**work)
        await never(lambda: world.handle.parked)
        world.says()
        await until(lambda: world.handle.parked)

    scenario(*(partial(act, work) for work in WORK), park_after_s=PARK_S, near_s=3)


def test_it_is_not_parked_while_its_programs_compute() -> None:
    async def act(world: World) -> None:
        began = time.monotonic()

        def compute() -> bool:
            world.says(user_cpu_ms=int((time.monotonic() - began) * 1000))
            return world.handle.parked

        await never(compute)
        await until(lambda: world.handle.parked)

    scenario(act, park_after_s=PARK_S)


def test_it_is_not_parked_while_somebody_holds_it() -> None:
    async def act(world: World) -> None:
        with world.handle.usage.busy():
            await never(lambda: world.handle.parked)
        with world.handle.usage.connected():
            await never(lambda: world.handle.parked)
        world.handle.usage.keep(4 * PARK_S)
        await never(lambda: world.handle.parked)
        await until(lambda: world.handle.parked)

    scenario(act, park_after_s=PARK_S)


def test_it_is_asked_ever_more_rarely() -> None:
    async def act(world: World) -> None:
        world.says(execs_running=1)
        await anyio.sleep(8 * PARK_S)
        assert 3 <= world.asked <= 5

    scenario(act, park_after_s=PARK_S)


def test_it_is_awake_before_its_timer_is_due_and_parked_after_it() -> None:
    async def act(world: World) -> None:
        due_at = time.monotonic() + 1.6
        world.says(next_timer_ms=1600)
        await until(lambda: world.handle.parked)
        world.says(next_timer_ms=500)
        await until(lambda: not world.handle.parked)
        assert 0.4 < due_at - time.monotonic() <= 1.0
        await never(lambda: world.handle.parked, due_at - time.monotonic())
        world.says()
        await until(lambda: world.handle.parked, 2)

    scenario(act, park_after_s=PARK_S, near_s=1.2)


def test_a_call_while_it_is_being_frozen_finds_it_awake() -> None:
    class Slow(FakeMachine):
        async def freeze(self) -> None:
            await anyio.sleep(0.2)
            await super().freeze()

    async def act(world: World) -> None:
        world.machine.__class__ = Slow
        await until(world.handle.parking._turn.locked)
        async with world.handle.reach() as link:
            await never(lambda: world.frozen, 0.4)
            await link.ping(timeout_s=2)

    scenario(act, park_after_s=PARK_S)


def test_never_parked_where_that_is_asked_for() -> None:
    async def act(world: World) -> None:
        await never(lambda: world.handle.parked or world.asked)

    scenario(act, park_after_s=None)


def test_idle_it_is_killed_parked_or_not() -> None:
    async def act(world: World) -> None:
        began = time.monotonic()
        await until(lambda: world.handle.stopping)
        assert 0.4 <= time.monotonic() - began < 1.5
        why = world.handle._why
        assert why is not None
        assert why.code == Reason.IDLE

    scenario(act, park_after_s=PARK_S, idle_timeout_s=0.4)
    scenario(act, park_after_s=None, idle_timeout_s=0.4)


def test_idle_it_is_suspended_where_that_is_asked_for() -> None:
    async def act(world: World) -> None:
        wish = None
        with anyio.fail_after(5):
            wish = await world.handle.wished()
        assert (wish.action.value, wish.actor) == ("suspend", "idle")
        world.handle.forget_wish(wish)
        wish.refuse(errors.HostFull("no room"))
        await never(lambda: world.handle._wishes, 1)  # it is not tried again at once
        assert not world.handle.stopping

    scenario(act, park_after_s=None, idle_timeout_s=0.3, on_idle="suspend")


def test_idle_it_is_kept_where_that_is_asked_for() -> None:
    async def act(world: World) -> None:
        await never(lambda: world.handle.stopping, 0.7)
        assert world.asked == 0

    scenario(act, park_after_s=None, idle_timeout_s=0.3, on_idle="keep")


def test_what_works_is_not_idle() -> None:
    async def act(work: dict[str, int], world: World) -> None:
        world.says(**work)
        await never(lambda: world.handle.stopping, 1)
        world.says()
        began = time.monotonic()
        await until(lambda: world.handle.stopping)
        assert time.monotonic() - began >= 0.3

    scenario(*(partial(act, work) for work in WORK[:2]), park_after_s=None, idle_timeout_s=0.3)


def test_a_timer_and_an_open_terminal_are_no_work() -> None:
    async def act(world: World) -> None:
        world.says(next_timer_ms=100, terminals_running=1)
        await until(lambda: world.handle.stopping, 2)

    scenario(act, park_after_s=None, idle_timeout_s=0.5)


def test_bytes_and_promises_put_it_off() -> None:
    async def act(world: World) -> None:
        for _ in range(4):
            await never(lambda: world.handle.stopping, 0.2)
            world.handle.usage.touch()
        world.handle.usage.keep(0.5)
        await never(lambda: world.handle.stopping, 0.7)
        await until(lambda: world.handle.stopping, 2)

    scenario(act, park_after_s=None, idle_timeout_s=0.3)


def test_a_guest_that_lies_loses_its_machine() -> None:
    async def act(world: World) -> None:
        world.says(user_cpu_ms="much")
        await until(lambda: world.handle.stopping)
        why = world.handle._why
        assert why is not None
        assert why.code == Reason.PROTOCOL_VIOLATION

    scenario(act, park_after_s=PARK_S)


def test_an_agent_too_old_to_be_asked_is_never_parked_but_idles() -> None:
    async def act(world: World) -> None:
        world.machine.agent.activity = None
        await never(lambda: world.handle.parked or world.handle.stopping, 0.45)
        await until(lambda: world.handle.stopping, 2)

    scenario(act, park_after_s=PARK_S, idle_timeout_s=0.5)


def test_whatever_an_agent_refuses_with_is_no_end() -> None:
    def refusing(code: str) -> Callable[[World], Awaitable[None]]:
        async def act(world: World) -> None:
            world.machine.agent.activity, world.machine.agent.refusal = None, code
            await until(lambda: world.asked > 2)
            await never(lambda: world.handle.parked or world.handle.stopping)

        return act

    codes = ("invalid-spec", "not-found", "state-conflict", "exec-refused", "port-refused", "some-other")
    scenario(*map(refusing, codes), park_after_s=PARK_S)


def test_a_vmm_that_cannot_be_frozen_in_time_runs_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its monitor answers somebody else first, or nobody at all: no sandbox ends of that, and no daemon."""
    monkeypatch.setattr(parking, "SIGNAL_S", 0.02)

    async def act(world: World) -> None:
        tried = []

        async def freeze() -> None:
            tried.append(1)
            await anyio.sleep(60)

        with monkeypatch.context() as patched:
            patched.setattr(world.machine, "freeze", freeze)
            await until(lambda: len(tried) > 1)
            assert not world.handle.parked
            await call(world.handle)
        await until(lambda: world.frozen)

    scenario(act, park_after_s=PARK_S)
