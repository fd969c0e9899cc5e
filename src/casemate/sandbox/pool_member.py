"""A pool's member, by its own supervisor: the ordinary boot list up to the ping, warm, parked, and then it waits.

What a claim does is the rest of the same list, so that one task opens and closes all of it. The step that waits ends
by a claim, by its pool's wish, or because the guest or its VMM brought it about.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol

import anyio
import structlog

from casemate import errors
from casemate.audit import EventKind
from casemate.host import private_mib
from casemate.sandbox.admission import Amount
from casemate.sandbox.boot import Boot
from casemate.sandbox.handshake import Introduction
from casemate.sandbox.plan import Step
from casemate.sandbox.spec import SandboxSpec
from casemate.sandbox.starting import Starter, introduce, since
from casemate.sandbox.supervisor import Supervisor
from casemate.sandbox.warmth import warm

log = structlog.get_logger()
CHECK_S = 5.0
ENDING_S = 0.5


@dataclass(frozen=True, slots=True)
class Claim:
    """Whose a member becomes; *at* is when the sandbox was asked for, by the clock that measures."""

    tenant: str
    spec: SandboxSpec
    actor: str
    at: float = field(default_factory=time.perf_counter)


@dataclass(eq=False)
class Member(Boot):
    """What the steps of a member's plan hand on to each other, and its pool to them.

    *ready* is set when it waits to be claimed, *settled* when it runs as its claimer's; a member that ended sets both.
    """

    warmed: bool = True
    claim: Claim | None = None
    offered: bool = False  # it was ready once
    heard_at: float = field(default_factory=time.monotonic)
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    settled: asyncio.Event = field(default_factory=asyncio.Event)
    _wake: asyncio.Event = field(default_factory=asyncio.Event)
    _doubted: bool = False

    @property
    def reserved(self) -> Amount:
        return self._reservation.held if self._reservation is not None else Amount(0, 0)

    @property
    def given_up(self) -> bool:
        """Its end was asked for; it did not fail."""
        return self.handle._why is not None

    def hand_to(self, claim: Claim) -> None:
        """It is *claim*'s from here on; its task, which waits, goes on with the rest of its plan."""
        self.claim = claim
        self._wake.set()

    def ask_whether_it_lives(self) -> None:
        self.heard_at, self._doubted = time.monotonic(), True
        self._wake.set()


class Shelf(Protocol):
    """Where members stand to be claimed; neither waits."""

    def offer(self, member: Member) -> None: ...

    def withdraw(self, member: Member) -> None:
        """It is claimed, or cannot be any more."""


@dataclass(frozen=True, slots=True)
class MemberSupervisor:
    """What the supervisors of all pools' members share."""

    supervisor: Supervisor

    async def supervise(self, member: Member, shelf: Shelf) -> None:
        """From its making to its end, whoever has it by then. Raises nothing: ``member.failure`` has it."""
        try:
            start = self.start_plan(shelf, copy=member.snapshot.is_session)
            await self.supervisor.start(member, self.life_plan(), start, member.settled.set)
        except errors.CasemateError as error:
            member.failure = member.failure or error
        finally:
            member.ready.set()
            member.settled.set()

    @property
    def starter(self) -> Starter:
        return self.supervisor.starter

    def life_plan(self) -> tuple[Step[Member], ...]:
        reserve, *rest = self.starter.life_plan()
        return (Step(f"pool-{reserve.name}", self._reserve, f"pool-{reserve.undo}"), *map(_of_a_member, rest))

    def start_plan(self, shelf: Shelf, *, copy: bool = False) -> tuple[Step[Member], ...]:
        """The boot list under names of its own, a rest, and then what the claim does."""
        *boot, run = self.starter.start_plan(copy=copy)

        @asynccontextmanager
        async def wait(member: Member) -> AsyncIterator[None]:
            await self._wait_claimed(member, shelf)
            yield

        return (
            *map(_of_a_member, boot),
            Step("pool-warm", self._warm),
            Step("pool-park", self._park),
            Step("pool-wait", wait),
            Step("claim-wake", self._wake_up),
            Step("claim-intend", self._intend),
            Step("claim-handshake", self._introduce),
            Step(run.name, run.open, run.undo),
        )

    @asynccontextmanager
    async def _reserve(self, member: Member) -> AsyncIterator[None]:
        admission, info = self.starter.admission, member.handle.info
        amount = admission.ready_amount(member.snapshot.id)
        whole = admission.amount(member.snapshot.id, info.memory_mib, info.disk_mib)
        async with admission.reserved_ready(info.tenant, amount, beside=whole) as member._reservation:
            yield

    @asynccontextmanager
    async def _warm(self, member: Member) -> AsyncIterator[None]:
        self.starter.end_turn(member)
        await warm(member.link, member.id, copy=member.snapshot.is_session)
        yield

    @asynccontextmanager
    async def _park(self, member: Member) -> AsyncIterator[None]:
        if own_mib := private_mib(member.machine.pid):
            self.starter.admission.learn_ready(member.snapshot.id, own_mib)
        await member.machine.freeze()
        yield

    async def _wait_claimed(self, member: Member, shelf: Shelf) -> None:
        member.handle.info = replace(member.handle.info, attestation=member.attestation)
        async with anyio.create_task_group() as watch:
            watch.start_soon(self._fail_with_its_machine, member)
            watch.start_soon(self._fail_with_its_link, member)
            member.offered, member.heard_at = True, time.monotonic()
            shelf.offer(member)
            member.ready.set()
            try:
                while member.claim is None:
                    await member._wake.wait()
                    member._wake.clear()
                    if member._doubted and member.claim is None:
                        await self._check(member)
            finally:
                shelf.withdraw(member)
            watch.cancel_scope.cancel()

    async def _fail_with_its_machine(self, member: Member) -> None:
        end = await member.machine.wait_exit()
        raise errors.VmmExited(f"sandbox {member.id}: its VMM ended with {end} while it was ready")

    async def _fail_with_its_link(self, member: Member) -> None:
        await member.link.ended.wait()
        with anyio.move_on_after(ENDING_S):  # a VMM that ends closes the stream first; its end is the better reason
            await anyio.sleep_forever()
        raise member.link.failure or errors.AgentSilent(f"sandbox {member.id}: its stream ended while it was ready")

    async def _check(self, member: Member) -> None:
        member._doubted = False
        await member.machine.thaw()
        await member.link.ping(timeout_s=CHECK_S)
        member.heard_at = time.monotonic()
        await member.machine.freeze()

    @asynccontextmanager
    async def _wake_up(self, member: Member) -> AsyncIterator[None]:
        """First, since it has to find out how late it is while we write; it runs nothing of its claimer's yet."""
        claim, handle = member.claim, member.handle
        assert claim is not None, "who waits comes past a claim only"
        handle.spec, handle.actor, member.born = claim.spec, claim.actor, claim.at
        handle.begin()
        member.admitted_ms = since(claim.at)
        await member.machine.thaw()
        member.restored_ms = since(claim.at)
        yield

    @asynccontextmanager
    async def _intend(self, member: Member) -> AsyncIterator[None]:
        """On record it is claimed just once, and before anything is done for who claimed it.

        Meanwhile it wakes: it answers a ping when it has found out how late it is.
        """
        handle, records = member.handle, self.starter.records
        detail = {"image": handle.info.image, "name": handle.info.name, "from_pool": True}
        async with anyio.create_task_group() as beside:
            beside.start_soon(partial(member.link.ping, timeout_s=self.starter.agent_timeout_s))
            await records.catch_up()
            await records.tell(EventKind.SANDBOX_CREATE, handle, detail, along=records.index.claiming(handle.info))
        yield

    @asynccontextmanager
    async def _introduce(self, member: Member) -> AsyncIterator[None]:
        """It is another one than it was: entropy, clock and identity are of this moment."""
        spec, limit_s = member.handle.spec, self.starter.agent_timeout_s
        async with anyio.create_task_group() as beside:
            beside.start_soon(self.starter.records.trail.settle)
            copy = member.snapshot.is_session
            introduction = Introduction(member.id, spec.env, spec.user, spec.cwd, copy=copy)
            await introduce(member.link, introduction, limit_s, awake=True)
        yield


def _of_a_member(step: Step[Boot]) -> Step[Member]:
    return Step(f"pool-{step.name}", step.open, step.undo and f"pool-{step.undo}")
