"""One pool: its members, who of them is claimed next, and how many more it wants. Nothing here waits.

made (``pool_member``) → ready ── claim: one look, one take, nothing awaited between ──→ a sandbox like any other
                           └── ended: too many, too old, dead, or its room is needed
"""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections import Counter, deque
from dataclasses import dataclass, field, replace
from datetime import datetime

from casemate.sandbox.meters import Miss, PoolMeter
from casemate.sandbox.pool_member import Claim, Member
from casemate.sandbox.pool_spec import Demand, PoolSpec, Scale
from casemate.sandbox.snapshot import Snapshot
from casemate.sandbox.spec import SandboxInfo, Shape
from casemate.sandbox.states import Action, Reason, go
from casemate.storage import PoolRow

CHECK_EVERY_S = 60.0  # so often a ready member is woken and asked whether it lives; one at a time
FIRST_DELAY_S, LONGEST_DELAY_S = 1.0, 60.0


@dataclass(eq=False)
class Pool:
    """*row* is what was asked for; *snapshot* what its reference means at the moment, once that is known."""

    row: PoolRow
    spec: PoolSpec = field(init=False)
    meter: PoolMeter = field(default_factory=PoolMeter)
    demand: Demand = field(default_factory=Demand)
    snapshot: Snapshot | None = None
    wanted: int = 0
    ready: deque[Member] = field(default_factory=deque)  # whoever was ready first is claimed first
    making: set[Member] = field(default_factory=set)
    ending: set[Member] = field(default_factory=set)
    claimed: int = 0  # sandboxes that live and were claimed from it
    failure: str | None = None  # why the last member could not be made, until one could
    followed_at: float = -math.inf
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    _scale: Scale = field(default_factory=Scale)
    _delay_s: float = 0.0
    _not_before: float = 0.0

    def __post_init__(self) -> None:
        self.change(self.row)

    def change(self, row: PoolRow) -> None:
        """Its numbers are these from now on."""
        self.row = row
        self.spec = PoolSpec(
            image=row.image,
            shape=self.shape,
            min_ready=row.min_ready,
            max_ready=row.max_ready,
            target_utilization=row.target_utilization,
            network=row.network,
            schedule=row.schedule,
        )
        self.changed.set()

    @property
    def shape(self) -> Shape:
        return Shape(self.row.vcpus, self.row.memory_mib, self.row.disk_mib)

    @property
    def labels(self) -> tuple[str, str]:
        return self.row.id, self.row.image

    @property
    def image_name(self) -> str:
        """Without version, tag or digest; empty where that is not known yet."""
        of = self.snapshot.image if self.snapshot is not None else self.row.image
        return "" if of.startswith("sha256:") else re.split("[@:]", of)[0]

    @property
    def members(self) -> tuple[Member, ...]:
        """Those that nobody has claimed."""
        return (*self.ready, *self.making, *self.ending)

    def current(self) -> int:
        """How many are ready of what the reference means now."""
        return sum(map(self._counts, self.ready))

    def is_for(self, tenant: str, spec: PoolSpec) -> bool:
        row = self.row
        return (row.tenant, row.image, self.shape, row.network) == (tenant, spec.image, spec.shape, spec.network)

    # ------------------------------------------------------------------------------ claiming

    def next_for(self, snapshot: Snapshot) -> Member | None:
        return next((member for member in self.ready if member.snapshot.id == snapshot.id), None)

    def take(self, member: Member, claim: Claim, info: SandboxInfo) -> None:
        """*member* is *claim*'s now, and nobody who looks after us finds it again.

        *info* is the sandbox that it becomes, but for what it is already. Raises StateConflict unless it is ready.
        """
        own = member.handle.info
        state = go(own.state, Action.CLAIM, f"sandbox {own.id}")
        self.ready.remove(member)
        self.claimed += 1
        member.handle.info = replace(info, id=own.id, state=state, attestation=own.attestation)
        member.hand_to(claim)
        self.changed.set()

    def why_missed(self, snapshot: Snapshot, network: str) -> Miss:
        """Why it has nothing for somebody who wants a clone of *snapshot*, whose image it is made for."""
        if network != self.row.network:
            return Miss.POLICY
        if snapshot.shape != self.shape:
            return Miss.SHAPE
        known = {member.snapshot.id for member in self.ready} | ({self.snapshot.id} if self.snapshot else set())
        return Miss.EMPTY if snapshot.id in known or not known else Miss.VERSION

    # ----------------------------------------------------------------------------- coming and going

    def settle(self, now_s: float, wall: datetime) -> None:
        """How many are wanted by now."""
        self.wanted = self._scale.settle(self.spec, self.demand, now_s, wall)

    def follow(self, snapshot: Snapshot) -> None:
        """What its reference means is *snapshot*."""
        self.snapshot, self.followed_at = snapshot, time.monotonic()

    def missing(self) -> int:
        return self.wanted - self.current() - len(self.making)

    def shrink(self) -> None:
        """End what is too much; what is of another version as soon as there are enough of the one that counts."""
        current = [member for member in self.ready if self._counts(member)]
        if len(current) >= self.wanted:
            for member in [member for member in self.ready if not self._counts(member)]:
                self.end(member, "its image's reference means another version now")
        for member in current[self.wanted :]:
            self.end(member, "its pool has enough ready ones")

    def offer(self, member: Member) -> None:
        """It is ready: whoever comes may claim it."""
        self.making.discard(member)
        self.ready.append(member)
        self.changed.set()

    def withdraw(self, member: Member) -> None:
        """It is claimed, or cannot be any more."""
        if member in self.ready:
            self.ready.remove(member)
            self.changed.set()

    def close(self) -> None:
        """Nobody can claim anything from here on."""
        self.ending.update(self.ready)
        self.ready.clear()

    def end(self, member: Member, why: str) -> None:
        """Nobody can claim it from here on."""
        self.making.discard(member)
        self.withdraw(member)
        self.ending.add(member)
        member.handle.ask_stop(Reason.KILLED, why)

    def gone(self, member: Member) -> None:
        """Nothing of *member* is left, whoever had it."""
        if member.claim is not None:
            self.claimed -= 1
        elif member.offered and member not in self.ending:
            self.meter.died += 1
        self.making.discard(member)
        self.ending.discard(member)
        self.withdraw(member)
        self.changed.set()

    # ------------------------------------------------------------------------------- looking after

    def most_doubtful(self, now_s: float) -> Member | None:
        """Who was not heard of for longest, if that is long."""
        found = min(self.ready, key=lambda member: member.heard_at, default=None)
        return found if found is not None and now_s - found.heard_at >= CHECK_EVERY_S else None

    def failed(self, why: str, *, passes: bool) -> None:
        """Again somewhat later, and later each time; what *passes* by itself does not count."""
        self.failure = why
        if passes:
            self._not_before = time.monotonic() + FIRST_DELAY_S
            return
        self.meter.failures += 1
        self._delay_s = min(max(self._delay_s * 2, FIRST_DELAY_S), LONGEST_DELAY_S)
        self._not_before = time.monotonic() + self._delay_s

    def succeeded(self, took_s: float) -> None:
        self.failure, self._delay_s = None, 0.0
        self.meter.refills_ms.append(took_s * 1000)

    def may_try(self) -> bool:
        return time.monotonic() >= self._not_before

    def versions(self) -> dict[str, int]:
        """Of which versions its ready members are."""
        return dict(Counter(member.snapshot.image for member in self.ready))

    def _counts(self, member: Member) -> bool:
        return self.snapshot is not None and member.snapshot.id == self.snapshot.id
