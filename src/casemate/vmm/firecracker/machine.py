"""One Firecracker process as the contract's machine."""

from __future__ import annotations

import json
import socket
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import anyio
import anyio.to_thread

from casemate import errors
from casemate.host import Account, ProcessMemory
from casemate.vmm.contract import VmmExit
from casemate.vmm.difference import Difference, save
from casemate.vmm.firecracker import calls
from casemate.vmm.firecracker.api import Api
from casemate.vmm.firecracker.exchange import Exchange
from casemate.vmm.firecracker.plan import AGENT_PORT, EXCHANGE, MEMORY, SAVED_MEMORY, SAVED_STATE, STREAM
from casemate.vmm.firecracker.sparse import dig_holes
from casemate.vmm.firecracker.stream import NobodyThere, connect_soon, relay
from casemate.vmm.firecracker.tail import Tail
from casemate.vmm.overlay import overlay
from casemate.vmm.process import Check, VmmProcess, pair

SAVE_S = 120.0  # it writes memory, and has it on the disk before it answers
FIRST_STREAM_S = 0.2  # an agent that waits takes a connection in a millisecond
STREAM_S = 5.0
BOOT_S = 300.0  # whoever boots has a shorter deadline of his own
METRICS_S = 1.0
STATES = ("Not started", "Running", "Paused")
DISK_FULL = (
    "os error 28)",
    "os error 122)",
    "code: 28,",
    "code: 122,",
)  # ENOSPC, EDQUOT, as Rust shows them
T = TypeVar("T")
Beside = Callable[[Coroutine[Any, Any, None]], object]  # runs it beside the rest, for as long as the machine is open


class FirecrackerMachine:
    """Made and closed by the driver only."""

    stream_survives = False

    def __init__(
        self,
        process: VmmProcess,
        api: Api,
        exchange: Exchange,
        console: Tail,
        metrics: Tail,
        beside: Beside,
        booted_memory: Path | None,
        spawn_ms: float,
    ) -> None:
        self._process = process
        self._api = api
        self._exchange = exchange
        self._console = console
        self._metrics = metrics
        self._beside = beside
        self.spawn_ms = spawn_ms  # until it ran in its jail
        self._booted_memory = booted_memory  # the file that a booted machine's memory is saved to; a clone has none
        self._stream: socket.socket | None = None
        if booted_memory is not None:
            self._relay_stream(BOOT_S)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def stream(self) -> socket.socket:
        if self._stream is None:
            raise errors.StateConflict(f"process {self.pid}: its guest has not run yet, so there is no stream")
        return self._stream

    async def unpause(self) -> None:
        await self._api.do(calls.set_state("Resumed"))
        if self._stream is None:
            try:
                self._stream = await self._connected(FIRST_STREAM_S)
            except errors.VmmRefused:  # not an agent that waits: perhaps later
                self._relay_stream(STREAM_S)

    async def pause(self) -> None:
        await self._api.do(calls.set_state("Paused"))

    async def save_state(self, into: Path) -> None:
        """It saves memory with it: a booted machine's into its file, what a clone has written into one that is dropped.

        The host reads a clone's memory itself (``save_difference``), so that two saves in a row do not differ.
        """
        state = f"{EXCHANGE}/{SAVED_STATE}"
        booted = calls.save("Full", state, MEMORY)
        cloned = calls.save("Diff", state, f"{EXCHANGE}/{SAVED_MEMORY}")
        try:
            await self._save(booted if self._booted_memory else cloned)
            await anyio.to_thread.run_sync(self._exchange.take, SAVED_STATE, into)
        finally:
            for name in (SAVED_MEMORY, SAVED_STATE):
                self._exchange.drop(name)
        if self._booted_memory:
            await anyio.to_thread.run_sync(dig_holes, self._booted_memory)

    async def _save(self, call: calls.Call) -> None:
        try:
            await self._api.do(call, SAVE_S)
        except errors.VmmRefused as error:
            fault = str(error.evidence.get("fault", ""))
            if any(words in fault for words in DISK_FULL):
                raise errors.HostFull(f"process {self.pid}: {fault}", hint="free some disk space") from error
            raise

    async def save_difference(self, memory: Path, into: Path) -> Difference:
        return await self._saved_from(memory, into, save)

    async def save_memory(self, memory: Path, into: Path) -> int:
        return await self._saved_from(memory, into, overlay)

    async def _saved_from(self, memory: Path, into: Path, act: Callable[[ProcessMemory, Path, Check], T]) -> T:
        said = await self._api.do(calls.instance())
        state = said.get("state") if isinstance(said, dict) else None
        if state not in STATES:
            raise errors.VmmRefused(f"process {self.pid} does not say what its guest does")
        if state != "Paused":
            raise errors.StateConflict(f"process {self.pid}: its guest is {state!r}, so its memory cannot be saved")
        return await self._process.saved_from(memory, into, act)

    async def record_working_set(self, memory: Path, into: Path) -> None:
        await self._process.record_working_set(memory, into)

    async def freeze(self) -> None:
        async with self._api.idle:
            self._process.stop()
            self._api.frozen = True
            await self._process.stopped()

    async def thaw(self) -> None:
        self._process.go_on()
        self._api.frozen = False

    async def reopen_stream(self) -> socket.socket:
        """The guest sees the old one close only after it has taken the new one."""
        if self._api.frozen:
            raise errors.StateConflict(f"process {self.pid} is frozen: its stream cannot be made anew")
        fresh = await self._answered(self._connected(STREAM_S))
        self.close_stream()
        self._stream = fresh
        return fresh

    async def _answered(self, connecting: Awaitable[socket.socket]) -> socket.socket:
        """Raises VmmExited rather than VmmRefused when the VMM has ended, which is why nobody answers."""
        try:
            return await connecting
        except NobodyThere as error:
            if self._process.has_ended:
                raise errors.VmmExited(f"process {self.pid} has ended") from error
            raise

    async def _connected(self, within_s: float) -> socket.socket:
        return await connect_soon(self._exchange.folder, STREAM, AGENT_PORT, within_s)

    def _relay_stream(self, within_s: float) -> None:
        self._stream, theirs = pair()
        theirs.setblocking(False)
        self._beside(relay(theirs, self._exchange.folder, STREAM, AGENT_PORT, within_s))

    async def wait_exit(self) -> VmmExit:
        return await self._process.wait_exit()

    async def account(self, memory: Path) -> Account:
        return await self._process.account(memory)

    @property
    def console_written(self) -> int:
        return self._console.written

    async def console(self) -> bytes:
        return self._console.read()

    async def metrics(self) -> dict[str, Any]:
        """What it has counted since it last said so, by device. Raises VmmRefused, VmmExited."""
        before = self._metrics.written
        await self._api.do(calls.flush_metrics())
        with anyio.move_on_after(METRICS_S):
            while True:
                lines = self._metrics.read().splitlines()
                if self._metrics.written > before and (found := _decoded(lines[-1])) is not None:
                    return found
                await anyio.sleep(0.002)
        raise errors.VmmRefused(f"process {self.pid} did not tell its metrics")

    def close_stream(self) -> None:
        if self._stream is not None:
            self._stream.close()

    async def load_difference(self, memory: Path, difference: Path) -> None:
        """Before its first instruction. Raises ImageBroken, HostError."""
        await self._process.load_difference(memory, difference)


def _decoded(line: bytes) -> dict[str, Any] | None:
    """None for half a line, and for what no metrics are."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
