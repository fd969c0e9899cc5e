"""A clone that is saved, killed and restored under a link that never notices: its bytes are relayed."""

from __future__ import annotations

import asyncio
import fcntl
import socket
import struct
import termios
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import anyio
from anyio.abc import TaskGroup
from machines import ANSWER_S, template_of

from casemate.images import copy_disk
from casemate.sandbox import Introduction, Link, Snapshot, execs, introduce, new_id
from casemate.vmm import Difference, Machine, MachineSpec, SnapshotFiles
from casemate.vmm.qemu import QemuDriver

DRAIN_S = 10.0
CHUNK = 65_536


def untaken(stream: socket.socket) -> int:
    """What was written to *stream* and not yet read at its other end. Source: unix(7), SIOCOUTQ"""
    return int(struct.unpack("i", fcntl.ioctl(stream, termios.TIOCOUTQ, b"\0" * 4))[0])


async def drain(machine: Machine, into: socket.socket) -> int:
    """Take what a paused machine has still to say: until nothing comes after a monitor round trip. How many bytes."""
    loop, taken, silent = asyncio.get_running_loop(), 0, 0
    with anyio.fail_after(DRAIN_S):
        while silent < 2:
            await machine.pause()  # a round trip; its main loop has turned since
            try:
                piece = machine.stream.recv(CHUNK)
            except BlockingIOError:
                silent += 1
                continue
            assert piece, "the VMM closed the stream"
            silent, taken = 0, taken + len(piece)
            await loop.sock_sendall(into, piece)
    return taken


class Pump:
    """Bytes from one socket to another, until stopped: between two pieces only, so that none is lost.

    asyncio's sock_recv may be cancelled when it has already taken something; waiting apart from taking may not.
    """

    def __init__(self, source: socket.socket, target: socket.socket) -> None:
        self._source, self._target = source, target
        self._scope, self._ended = anyio.CancelScope(), anyio.Event()

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            with self._scope:
                while True:
                    await anyio.wait_readable(self._source)
                    if not (piece := self._source.recv(CHUNK)):
                        return
                    with anyio.fail_after(DRAIN_S, shield=True):
                        await loop.sock_sendall(self._target, piece)
        finally:
            self._ended.set()

    async def stop(self) -> None:
        self._scope.cancel()
        await self._ended.wait()


@dataclass
class Suspendable:
    driver: QemuDriver
    template: Snapshot
    spec: MachineSpec
    folder: Path
    link: Link
    machine: Machine
    tasks: TaskGroup
    _relayed: socket.socket
    _held: AsyncExitStack
    rounds: int = 0
    drained: int = 0
    saved: Difference | None = None

    def relay(self) -> None:
        self.to_guest, self.to_host = Pump(self._relayed, self.machine.stream), Pump(self.machine.stream, self._relayed)
        for pump in (self.to_guest, self.to_host):
            self.tasks.start_soon(pump.run)

    async def still(self) -> None:
        """Nothing under way in either direction, vCPUs stopped."""
        await self.to_guest.stop()
        with anyio.fail_after(DRAIN_S):
            while untaken(self.machine.stream):
                await anyio.sleep(0.001)
        await self.machine.pause()
        await self.to_host.stop()
        self.drained += await drain(self.machine, self._relayed)

    async def save(self) -> tuple[SnapshotFiles, Path]:
        self.rounds += 1
        memory = self.template.files.memory
        files = replace(self.template.files, state=self.folder / f"state-{self.rounds}")
        difference = self.folder / f"difference-{self.rounds}"
        await self.machine.save_state(files.state)
        self.saved = await self.machine.save_difference(memory, difference)
        return files, difference

    async def kill(self) -> None:
        await self._held.aclose()

    async def restore(self, files: SnapshotFiles, difference: Path) -> None:
        restored = self.driver.restore(self.spec, files, difference=difference)
        self.machine = await self._held.enter_async_context(restored)
        self.relay()
        await self.machine.unpause()

    async def suspend_and_resume(self) -> None:
        await self.still()
        saved = await self.save()
        await self.kill()
        await self.restore(*saved)

    async def run(self, *argv: str) -> bytes:
        output = b""
        async with execs.start(self.link, execs.ExecSpec(argv)) as running:
            while isinstance(piece := await running.read(), execs.Output):
                output += piece.data
        assert piece.end == execs.Exited(0), (piece, output)
        return output


@asynccontextmanager
async def open_suspendable(driver: QemuDriver, home: Path, folder: Path) -> AsyncIterator[Suspendable]:
    template = template_of(home)
    guest_id, disk = new_id(), folder / "disk"
    copy_disk(template.disk, disk)
    spec = template.machine(guest_id, disk)
    ours, relayed = socket.socketpair()
    ours.setblocking(False)
    relayed.setblocking(False)
    with ours, relayed:
        async with AsyncExitStack() as held, anyio.create_task_group() as tasks:
            machine = await held.enter_async_context(driver.restore(spec, template.files))
            link = Link(guest_id, silence_s=ANSWER_S)
            found = Suspendable(driver, template, spec, folder, link, machine, tasks, relayed, held)
            tasks.start_soon(link.run, ours)
            found.relay()
            await machine.unpause()
            await introduce(link, Introduction(guest_id), ANSWER_S)
            yield found
            await found.to_guest.stop()
            await found.to_host.stop()
            tasks.cancel_scope.cancel()
