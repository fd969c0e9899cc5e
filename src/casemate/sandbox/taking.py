"""The state of a running machine as of one moment, in a folder of its own, while it goes on exactly as before.

    copy ─ sync ─ quiesce ─ hush ─ pause ─ drain ─ state ─ memory ─ disk
                   thaw  ◀  speak ◀ unpause ◀──────── read backwards, always

Its user's processes are frozen before the vCPUs stop and thawed after they go on: so in a copy, which wakes in the
middle of it, none of them runs before the copy was introduced to itself. What takes long, to copy the memory that the
machine stands on, is done before; under the pause only what its guest wrote is.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import structlog

from casemate import errors
from casemate.sandbox.boot import Boot
from casemate.sandbox.carrying import QUIET_S
from casemate.sandbox.handshake import Introduction
from casemate.sandbox.link import Link
from casemate.sandbox.plan import Step
from casemate.sandbox.snapshot import Taken, TakenFacts
from casemate.sandbox.starting import copy_where_there_is_room, introduce, thaw
from casemate.sandbox.states import Reason
from casemate.sandbox.suspending import write_files

log = structlog.get_logger()
FREEZE_S = 10.0  # the agent gives up after half of that


@dataclass(eq=False)
class Taking:
    """What the steps of one copy hand on to each other."""

    boot: Boot
    into: Path
    agent_timeout_s: float
    began: float = field(default_factory=time.perf_counter)
    frozen_at: float | None = None
    paused_at: float | None = None
    frozen_ms: float = 0.0
    pause_ms: float = 0.0
    dirty_bytes: int = 0

    def taken(self) -> Taken:
        """Now that it goes on again."""
        took_ms = _since(self.began)
        facts = TakenFacts(time.time(), self.pause_ms, self.frozen_ms, took_ms, self.dirty_bytes)
        return Taken(self.into, facts, self.boot.snapshot, None if self.boot.booted else self.boot.memory)

    @property
    def link(self) -> Link:
        return self.boot.link


def plan() -> tuple[Step[Taking], ...]:
    """All of it is undone, also when it came to its end."""
    return (
        Step("take-copy", _copy),
        Step("take-sync", _sync),
        Step("take-quiesce", _quiesce, undo="take-thaw"),
        Step("take-hush", _hush, undo="take-speak"),
        Step("take-pause", _pause, undo="take-unpause"),
        Step("take-drain", _drain),
        Step("take-state", _save_state),
        Step("take-memory", _save_memory),
        Step("take-disk", _copy_disk),
    )


@asynccontextmanager
async def _copy(taking: Taking) -> AsyncIterator[None]:
    """The memory it was restored from, which nobody writes. One that was booted writes its own: that has to wait."""
    boot = taking.boot
    if not boot.booted:
        await anyio.to_thread.run_sync(copy_where_there_is_room, boot.memory, taking.into / "memory")
    yield


@asynccontextmanager
async def _sync(taking: Taking) -> AsyncIterator[None]:
    """So that its disk is whole by itself, for who boots from it."""
    await write_files(taking.boot)
    yield


@asynccontextmanager
async def _quiesce(taking: Taking) -> AsyncIterator[None]:
    """Nothing is asked of the agent meanwhile that it would need one of those processes for."""
    link = taking.link
    try:
        await link.hold(timeout_s=QUIET_S)
        taking.frozen_at = time.perf_counter()
        async with link.open("control", {"op": "quiesce"}, timeout_s=FREEZE_S, urgent=True):
            pass
        yield
    finally:
        try:
            with anyio.CancelScope(shield=True):
                await _thaw(taking)
        finally:
            link.speak()


async def _thaw(taking: Taking) -> None:
    if taking.frozen_at is None or taking.link.failure is not None:
        return
    try:
        await thaw(taking.link, taking.agent_timeout_s)
        taking.frozen_ms = _since(taking.frozen_at)
    except (errors.GuestError, errors.RequestError) as error:
        taking.boot.handle.ask_stop(Reason.GUEST_SILENT, f"its processes could not be thawed: {error}")
        raise


@asynccontextmanager
async def _hush(taking: Taking) -> AsyncIterator[None]:
    link, carrier = taking.link, taking.boot.carrier
    try:
        await carrier.hush()
        yield
    finally:
        await carrier.unhush()
        if taking.paused_at is not None and link.failure is None:
            with anyio.CancelScope(shield=True):  # its clocks stood still, too
                await introduce(link, Introduction(taking.boot.id, fresh=False), taking.agent_timeout_s)


@asynccontextmanager
async def _pause(taking: Taking) -> AsyncIterator[None]:
    machine = taking.boot.machine
    taking.paused_at = time.perf_counter()
    try:
        with anyio.CancelScope(shield=True):  # what a VMM was told to do it does, whoever waits for its answer
            await machine.pause()
        yield
    finally:
        with anyio.CancelScope(shield=True):
            await machine.unpause()
        taking.pause_ms = _since(taking.paused_at)


@asynccontextmanager
async def _drain(taking: Taking) -> AsyncIterator[None]:
    await taking.boot.carrier.drain()
    yield


@asynccontextmanager
async def _save_state(taking: Taking) -> AsyncIterator[None]:
    with anyio.CancelScope(shield=True):  # one that was booted stops again at the end of it
        await taking.boot.machine.save_state(taking.into / "state")
    yield


@asynccontextmanager
async def _save_memory(taking: Taking) -> AsyncIterator[None]:
    boot, memory = taking.boot, taking.into / "memory"
    if boot.booted:
        await anyio.to_thread.run_sync(copy_where_there_is_room, boot.memory, memory)
        taking.dirty_bytes = memory.stat().st_blocks * 512
    else:
        taking.dirty_bytes = await boot.machine.save_memory(boot.memory, memory)
    yield


@asynccontextmanager
async def _copy_disk(taking: Taking) -> AsyncIterator[None]:
    await anyio.to_thread.run_sync(copy_where_there_is_room, taking.boot.place.disk, taking.into / "disk")
    yield


def _since(start: float) -> float:
    return round((time.perf_counter() - start) * 1000, 1)
