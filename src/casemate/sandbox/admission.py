"""Admission by reservation: what a sandbox may come to need is set aside before anything of it is made.

A sandbox reserves the private memory of a fresh clone, as measured, plus ``commit_ratio`` of its guest's memory
and of its disk. Who does not fit waits ``admission_wait_s`` in a queue, then is refused with HostFull; nothing
has been made for it by then. First come, first served within a tenant; between tenants in turn, and a tenant
whose next one does not fit yet does not keep the others waiting. Processors are not reserved: starts take turns for
them (``Starter.turn``), what runs shares them.

A ready member of a pool reserves what it has, not what its guest may come to need, and the rest when it is claimed;
members are the first to go when a create does not fit.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import anyio

from casemate.errors import HostFull
from casemate.host import own

ASSUMED_CLONE_MIB = 48  # until the first clone of a snapshot has been measured; it comes to 25 to 45
ASSUMED_READY_MIB = 80  # the same of one that was warmed
RETRY_AFTER_S = 5
RELIEF_S = 10.0  # how long who does not fit waits for what is being ended in its favour
PRESSURE_S = 10.0  # so long after somebody did not fit, nothing is made that nobody asked for


class Relief(StrEnum):
    """What is done when the host runs low, in this order; a later one only when the earlier gave too little.

    Who can give something back is in ``Admission.relievers``; refusing is what is left when all of it is too little.
    """

    STOP_REFILLING_POOLS = "stop-refilling-pools"
    SHRINK_POOLS = "shrink-pools"
    SUSPEND_IDLE = "suspend-idle"
    REFUSE_CREATES = "refuse-creates"


@dataclass(frozen=True, slots=True)
class Amount:
    memory_mib: int
    disk_mib: int

    def __add__(self, other: Amount) -> Amount:
        return Amount(self.memory_mib + other.memory_mib, self.disk_mib + other.disk_mib)

    def __sub__(self, other: Amount) -> Amount:
        return Amount(self.memory_mib - other.memory_mib, self.disk_mib - other.disk_mib)

    def fits(self, room: Amount) -> bool:
        return self.memory_mib <= room.memory_mib and self.disk_mib <= room.disk_mib

    def __mul__(self, count: int) -> Amount:
        return Amount(self.memory_mib * count, self.disk_mib * count)

    def is_nothing(self) -> bool:
        return self.memory_mib <= 0 and self.disk_mib <= 0

    def __str__(self) -> str:
        return f"{self.memory_mib} MiB of memory and {self.disk_mib} MiB of disk"


Reliever = Callable[[Amount], Amount]
"""``reliever(missing)`` begins to give back at least *missing*, as far as it can, and says how much will come.

What is on its way already, from an earlier call, counts too. Called in the event loop, must not wait.
"""


@dataclass(eq=False)
class Reservation:
    """What is set aside for one sandbox. Its memory is given back while it is suspended."""

    admission: Admission
    tenant: str
    held: Amount

    def give_back_memory(self) -> None:
        self.admission.release(Amount(self.held.memory_mib, 0))
        self.held = Amount(0, self.held.disk_mib)

    def shrink(self, held: Amount) -> None:
        """Give back what it turned out not to need."""
        self.admission.release(self.held - held)
        self.held = held

    async def take_memory(self, memory_mib: int) -> None:
        """Raises HostFull after ``admission_wait_s``; then nothing is taken."""
        await self.admission.wait_admitted(self.tenant, Amount(memory_mib, 0))
        self.held += Amount(memory_mib, 0)


@dataclass(frozen=True, slots=True)
class Share:
    """One of the like parts of a reservation that was made for several."""

    of: Reservation
    amount: Amount


@dataclass(eq=False)
class _Waiting:
    amount: Amount
    admitted: asyncio.Event = field(default_factory=asyncio.Event)


class Admission:
    """All reservations of one daemon. Lives in its event loop; nothing here blocks."""

    def __init__(self, budget: Amount, *, commit_ratio: float, wait_s: float) -> None:
        self.budget = budget
        self.reserved = Amount(0, 0)
        self.relievers: dict[Relief, Reliever] = {}
        self._pressed_at = -PRESSURE_S
        self._commit_ratio = commit_ratio
        self._wait_s = wait_s
        self._queues: dict[str, deque[_Waiting]] = {}  # the first tenant's turn is next
        self._clone_mib: dict[str, int] = {}
        self._ready_mib: dict[str, int] = {}

    def amount(self, snapshot: str, memory_mib: int, disk_mib: int) -> Amount:
        """What a clone of *snapshot* with such a guest reserves."""
        private_mib = self._clone_mib.get(snapshot, ASSUMED_CLONE_MIB)
        return Amount(private_mib + round(memory_mib * self._commit_ratio), round(disk_mib * self._commit_ratio))

    def ready_amount(self, snapshot: str) -> Amount:
        """What a clone of *snapshot* reserves while nobody uses it: the memory that it has of its own."""
        return Amount(self._ready_mib.get(snapshot, ASSUMED_READY_MIB), 0)

    def learn(self, snapshot: str, private_mib: int) -> None:
        """A fresh clone of *snapshot* was seen to have so much memory of its own; the largest counts."""
        self._clone_mib[snapshot] = max(private_mib, self._clone_mib.get(snapshot, 0))

    def learn_ready(self, snapshot: str, private_mib: int) -> None:
        """The same of one that was warmed, which writes to more of its pages."""
        self._ready_mib[snapshot] = max(private_mib, self._ready_mib.get(snapshot, 0))

    def forget(self, snapshot: str) -> None:
        """There will be no more clones of *snapshot*."""
        self._clone_mib.pop(snapshot, None)
        self._ready_mib.pop(snapshot, None)

    @property
    def pressed(self) -> bool:
        """Whether somebody waits for room, or did not find enough of it just now."""
        return bool(self._queues) or time.monotonic() - self._pressed_at < PRESSURE_S

    @asynccontextmanager
    async def reserved_ready(self, tenant: str, amount: Amount, *, beside: Amount) -> AsyncIterator[Reservation]:
        """As reserved_for, for what nobody asked for: only where *beside* would fit as well, and nobody waits.

        Raises HostFull at once.
        """
        if self._queues or not (amount + beside).fits(self.budget - self.reserved):
            raise HostFull(
                f"there is no room to keep a sandbox ready: {amount} and, for who comes next, {beside} are not left"
                f" beside the {self.reserved} that are reserved of {self.budget}",
                hint="end a sandbox, make pools smaller, or raise memory_budget_mib or disk_budget_mib",
                evidence=self._evidence(amount),
            )
        self.reserved += amount
        async with self._owned(Reservation(self, tenant, amount)) as reservation:
            yield reservation

    def grow_nowait(self, reservation: Reservation, tenant: str, amount: Amount) -> bool:
        """Make it *amount*, for *tenant*, if there is room for the rest; not past others of *tenant* who wait."""
        more = amount - reservation.held
        if tenant in self._queues or not more.fits(self.budget - self.reserved):
            return False
        self.reserved += more
        reservation.tenant, reservation.held = tenant, amount
        return True

    @asynccontextmanager
    async def reserved_for(
        self, tenant: str, amount: Amount, what: str = "a sandbox of this shape"
    ) -> AsyncIterator[Reservation]:
        """*amount* is set aside until the block ends; for good where something opened inside has leaked.

        Where it does not fit and ending what nobody uses makes room, it waits for that, RELIEF_S at most.
        Raises HostFull after ``admission_wait_s``, at once when it could never fit. Cancelled: nothing is reserved.
        """
        if not amount.fits(self.budget):
            raise HostFull(
                f"{what}: {amount} would be reserved; this host gives {self.budget} in all",
                hint="ask for less memory or disk, or raise memory_budget_mib or disk_budget_mib",
                evidence=self._evidence(amount),
            )
        await self.wait_admitted(tenant, amount)
        async with self._owned(Reservation(self, tenant, amount)) as reservation:
            yield reservation

    @asynccontextmanager
    async def shared(self, share: Share) -> AsyncIterator[Reservation]:
        """As reserved_for, out of what is reserved already."""
        share.of.held -= share.amount
        async with self._owned(Reservation(self, share.of.tenant, share.amount)) as reservation:
            yield reservation

    @asynccontextmanager
    async def taken_for(self, tenant: str, amount: Amount) -> AsyncIterator[Reservation]:
        """As reserved_for, for what is in use already: nobody is asked whether it fits."""
        self.reserved += amount
        async with self._owned(Reservation(self, tenant, amount)) as reservation:
            yield reservation

    @asynccontextmanager
    async def _owned(self, reservation: Reservation) -> AsyncIterator[Reservation]:
        async def release() -> None:
            self.release(reservation.held)

        async with own(f"a reservation of {reservation.held}", release):
            yield reservation

    def release(self, amount: Amount) -> None:
        self.reserved -= amount
        self._admit()

    async def wait_admitted(self, tenant: str, amount: Amount) -> None:
        """*amount* is reserved when this returns. Raises HostFull after ``admission_wait_s``."""
        with self._queued(tenant, amount) as waiting:
            wait_s = self._wait_s
            if not waiting.admitted.is_set() and self._relieve():
                wait_s = max(wait_s, RELIEF_S)
            with anyio.move_on_after(wait_s):
                await waiting.admitted.wait()
            if not waiting.admitted.is_set():
                raise HostFull(
                    f"this host is full: {amount} do not fit beside the {self.reserved} that are reserved"
                    f" of {self.budget}" + (f"; waited {self._wait_s:g} s" if self._wait_s else ""),
                    hint="end a sandbox, or try again later; casemate ps lists them",
                    evidence=self._evidence(amount),
                )

    def _relieve(self) -> bool:
        """Begin to make room for all who wait; whether there will be enough."""
        self._pressed_at = time.monotonic()
        wanted, room = Amount(0, 0), self.budget - self.reserved
        for queue in self._queues.values():
            for waiting in queue:
                wanted += waiting.amount
        for relief in Relief:
            if relief in self.relievers:
                room += self.relievers[relief](wanted - room)
            if wanted.fits(room):
                return True
        return False

    @contextmanager
    def _queued(self, tenant: str, amount: Amount) -> Iterator[_Waiting]:
        """In the queue until the block ends; if it fails, what was reserved meanwhile is given back."""
        waiting = _Waiting(amount)
        self._queues.setdefault(tenant, deque()).append(waiting)
        self._admit()
        try:
            yield waiting
        except BaseException:
            if waiting.admitted.is_set():
                self.reserved -= amount
            elif waiting in (queue := self._queues.get(tenant, deque())):
                queue.remove(waiting)
                if not queue:
                    del self._queues[tenant]
            self._admit()
            raise

    def _admit(self) -> None:
        """Let in who fits: one of each tenant in turn, for as long as anybody does."""
        while (tenant := self._next_that_fits()) is not None:
            queue = self._queues.pop(tenant)
            waiting = queue.popleft()
            if queue:
                self._queues[tenant] = queue  # at the end: the others come first now
            self.reserved += waiting.amount
            waiting.admitted.set()

    def _next_that_fits(self) -> str | None:
        room = self.budget - self.reserved
        return next((tenant for tenant, queue in self._queues.items() if queue[0].amount.fits(room)), None)

    def _evidence(self, amount: Amount) -> dict[str, Any]:
        return {
            "retry_after_s": RETRY_AFTER_S,
            "wanted_memory_mib": amount.memory_mib,
            "wanted_disk_mib": amount.disk_mib,
            **self.to_json(),
        }

    def to_json(self) -> dict[str, Any]:
        return {
            "memory_budget_mib": self.budget.memory_mib,
            "memory_reserved_mib": self.reserved.memory_mib,
            "disk_budget_mib": self.budget.disk_mib,
            "disk_reserved_mib": self.reserved.disk_mib,
            "waiting": sum(len(queue) for queue in self._queues.values()),
        }
