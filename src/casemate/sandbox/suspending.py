"""From a running machine to what is stored of it: a plan whose last step is one rename.

Failed or cancelled before that, every step is undone and the machine runs on; after it the machine is stopped for
good, and its supervisor kills it.
"""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

import anyio
import structlog

from casemate import errors
from casemate.audit import EventKind
from casemate.host import sync_file
from casemate.sandbox.boot import Boot
from casemate.sandbox.handle import Wish
from casemate.sandbox.plan import Step
from casemate.sandbox.records import Records
from casemate.sandbox.seal import Seal
from casemate.sandbox.spec import SuspendedFacts
from casemate.sandbox.states import Action
from casemate.sandbox.suspended import Suspended, digest_of_part, stored_bytes

log = structlog.get_logger()
PAGE_BYTES = os.sysconf("SC_PAGESIZE")
SYNC_S = 10.0  # a guest that does not write its files in that time is stored as it is
LIMIT_S = 150.0


@dataclass(eq=False)
class Saving:
    """What the steps of one suspend hand on to each other."""

    boot: Boot
    wish: Wish
    began: float = field(default_factory=time.perf_counter)
    paused: float = 0.0
    digests: dict[str, str] = field(default_factory=dict)
    base: str = ""  # the sha256 of the memory under the difference
    dirty_bytes: int = 0
    facts: SuspendedFacts | None = None

    def final_facts(self) -> SuspendedFacts:
        """Now that its memory is given back."""
        assert self.facts is not None, "it has not come to its end"
        return replace(self.facts, took_ms=round((time.perf_counter() - self.began) * 1000, 1))


@dataclass(frozen=True, slots=True)
class Suspender:
    """How the sandboxes of one daemon are stored."""

    records: Records
    seal: Seal

    def plan(self) -> tuple[Step[Saving], ...]:
        """Undone is only what did not come to the end of the list."""
        return (
            Step("suspend-record", self._record, undo="suspend-failed"),
            Step("suspend-sync", self._sync),
            Step("suspend-folder", self._folder, undo="suspend-give-up"),
            Step("suspend-hush", self._hush, undo="suspend-speak"),
            Step("suspend-pause", self._pause, undo="suspend-unpause"),
            Step("suspend-drain", self._drain),
            Step("suspend-state", self._save_state),
            Step("suspend-memory", self._save_memory),
            Step("suspend-disk", self._take_disk),
            Step("suspend-seal", self._seal),
        )

    @asynccontextmanager
    async def _record(self, saving: Saving) -> AsyncIterator[None]:
        """On record before anything changes; and that it has failed, if it has."""
        boot, detail = saving.boot, {"asked_by": saving.wish.actor}
        try:
            await self.records.edge(boot.handle, Action.SUSPEND, EventKind.SANDBOX_SUSPEND, detail)
            yield
        except BaseException as error:
            await self._failed(boot, error)
            raise

    async def _failed(self, boot: Boot, error: BaseException) -> None:
        detail = {"message": str(error)[:500]}
        with anyio.CancelScope(shield=True), anyio.move_on_after(10):
            try:
                await self.records.edge(boot.handle, Action.SUSPEND_FAILED, EventKind.SANDBOX_SUSPEND_FAILED, detail)
            except (errors.HostError, errors.CapacityError) as refused:  # it runs on all the same
                log.error("a suspend that failed could not be recorded", sandbox=boot.id, error=str(refused))

    @asynccontextmanager
    async def _sync(self, saving: Saving) -> AsyncIterator[None]:
        """So that a boot from the disk alone finds what was written without fsync, too."""
        await write_files(saving.boot)
        yield

    @asynccontextmanager
    async def _folder(self, saving: Saving) -> AsyncIterator[None]:
        boot, place = saving.boot, saving.boot.place
        if boot.own_memory is None and boot.snapshot.kind == "fork":  # made for who lives no longer than this daemon
            await anyio.to_thread.run_sync(boot.snapshot.sync)
        await anyio.to_thread.run_sync(place.begin)
        try:
            yield
        except BaseException:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(place.give_up)
            raise

    @asynccontextmanager
    async def _hush(self, saving: Saving) -> AsyncIterator[None]:
        carrier = saving.boot.carrier
        try:
            await carrier.hush()
            yield
        except BaseException:
            await carrier.unhush()
            saving.boot.link.speak()
            raise

    @asynccontextmanager
    async def _pause(self, saving: Saving) -> AsyncIterator[None]:
        machine = saving.boot.machine
        try:
            with anyio.CancelScope(shield=True):  # what a VMM was told to do it does, whoever waits for its answer
                await machine.pause()
            saving.paused = time.perf_counter()
            yield
        except BaseException as error:
            if not isinstance(error, errors.VmmExited):
                with anyio.CancelScope(shield=True):
                    await machine.unpause()
            raise

    @asynccontextmanager
    async def _drain(self, saving: Saving) -> AsyncIterator[None]:
        await saving.boot.carrier.drain()
        yield

    @asynccontextmanager
    async def _save_state(self, saving: Saving) -> AsyncIterator[None]:
        path = saving.boot.place.new / "state"
        await saving.boot.machine.save_state(path)
        saving.digests["state"] = await anyio.to_thread.run_sync(_synced_digest, path)
        yield

    @asynccontextmanager
    async def _save_memory(self, saving: Saving) -> AsyncIterator[None]:
        """The pages that were written over the base; of a machine that was booted all, which is a file already."""
        boot = saving.boot
        if boot.booted:
            saving.base = await anyio.to_thread.run_sync(_synced_memory, boot.memory)
            saving.dirty_bytes = boot.memory.stat().st_blocks * 512
        else:
            difference = await boot.machine.save_difference(boot.memory, boot.place.new / "difference")
            saving.digests["difference"] = difference.sha256
            saving.base = boot.found.base if boot.found is not None else boot.snapshot.digests["memory"]
            saving.dirty_bytes = difference.pages * PAGE_BYTES
        yield

    @asynccontextmanager
    async def _take_disk(self, saving: Saving) -> AsyncIterator[None]:
        place = saving.boot.place
        await anyio.to_thread.run_sync(place.take_disk)
        await anyio.to_thread.run_sync(sync_file, place.new / "disk")
        saving.digests["disk"] = await anyio.to_thread.run_sync(
            partial(digest_of_part, place.new / "disk", sparse=True)
        )
        yield

    @asynccontextmanager
    async def _seal(self, saving: Saving) -> AsyncIterator[None]:
        boot = saving.boot
        saving.facts = await anyio.to_thread.run_sync(_facts, saving)
        found = _manifest(saving, saving.facts)
        with anyio.CancelScope(shield=True):  # a thread goes on; whether it is suspended has to be known
            await anyio.to_thread.run_sync(boot.place.seal, found.sealed(self.seal))
        boot.sealed = True
        yield


async def write_files(boot: Boot) -> None:
    """Have the guest write its files to its disk; one that does not in time is left alone. Raises GuestError."""
    try:
        async with boot.link.open("control", {"op": "sync"}, timeout_s=SYNC_S):
            pass
    except (errors.GuestError, errors.RequestError) as error:
        if boot.link.failure is not None:
            raise
        log.warning("a guest did not write its files in time", sandbox=boot.id, error=str(error))


def _synced_digest(path: Path) -> str:
    sync_file(path)
    return digest_of_part(path, sparse=False)


def _synced_memory(path: Path) -> str:
    sync_file(path)
    return digest_of_part(path, sparse=True)


def _facts(saving: Saving) -> SuspendedFacts:
    boot, now = saving.boot, time.perf_counter()
    own_bytes = 0 if boot.own_memory is None else boot.memory.stat().st_blocks * 512
    base_blocks = boot.snapshot.disk.stat().st_blocks if boot.own_memory is None else 0
    disk_blocks = (boot.place.new / "disk").stat().st_blocks
    return SuspendedFacts(
        at=time.time(),
        stored_bytes=stored_bytes(boot.place.new) + own_bytes,
        dirty_bytes=saving.dirty_bytes,
        written_bytes=max(0, disk_blocks - base_blocks) * 512,
        pause_ms=round((now - saving.paused) * 1000, 1),
        took_ms=round((now - saving.began) * 1000, 1),
    )


def _manifest(saving: Saving, facts: SuspendedFacts) -> Suspended:
    boot = saving.boot
    info, snapshot = boot.handle.info, boot.snapshot
    return Suspended(
        id=info.id,
        tenant=info.tenant,
        snapshot=snapshot.id,
        image=snapshot.image,
        shape=snapshot.shape,
        platform=snapshot.platform,
        kernel_release=snapshot.kernel_release,
        generation=snapshot.generation,
        root=snapshot.root,
        agent=snapshot.agent,
        own_memory=boot.own_memory,
        base=saving.base,
        digests=saving.digests,
        facts=facts,
        spec=asdict(boot.handle.spec),
    )
