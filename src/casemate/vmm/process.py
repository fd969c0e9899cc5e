"""A VMM as a process: what holds of one whichever VMM it is. The drivers compose this; it has no public name."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import anyio
import anyio.from_thread
import anyio.to_thread

from casemate import errors
from casemate.host import Account, Launcher, ProcessMemory, Spawned
from casemate.vmm.contract import MachineSpec, VmmExit
from casemate.vmm.difference import load
from casemate.vmm.working_set import record

STOPPED_S = 1.0
ENDED_OR_STOPPED = "TtZX"  # Source: proc_pid_stat(5)
EXIT_TOLD_S = 1.0
T = TypeVar("T")
Check = Callable[[], object]


class VmmProcess:
    """A VMM that the launcher has started: its memory, its rest and its end."""

    def __init__(self, launcher: Launcher, spawned: Spawned) -> None:
        self._launcher = launcher
        self._spawned = spawned

    @property
    def pid(self) -> int:
        return self._spawned.pid

    @property
    def has_ended(self) -> bool:
        return self._spawned.exited.is_set()

    async def wait_exit(self) -> VmmExit:
        await self._spawned.exited.wait()
        return exit_of(self._spawned)

    async def account(self, memory: Path) -> Account:
        """See the contract."""
        with GivenAway() as given:
            return await self._launcher.attest(self._spawned, given.open(memory, os.O_RDONLY))

    async def memory(self, memory: Path) -> ProcessMemory:
        """Its private copy of the file *memory*; close it. Raises HostError, VmmExited."""
        with GivenAway() as given:
            return await self._launcher.memory(self._spawned, given.open(memory, os.O_RDONLY))

    async def saved_from(self, memory: Path, into: Path, act: Callable[[ProcessMemory, Path, Check], T]) -> T:
        """What *act* makes of the memory of a machine that is known to be paused. Raises as *act*; VmmExited."""
        with await self.memory(memory) as process:
            try:
                return await anyio.to_thread.run_sync(act, process, into, anyio.from_thread.check_cancelled)
            except errors.HostError as error:
                with anyio.move_on_after(EXIT_TOLD_S):  # it may have ended under our hands
                    await self._spawned.exited.wait()
                    raise errors.VmmExited(f"process {self.pid} ended while its memory was saved") from error
                raise

    async def load_difference(self, memory: Path, difference: Path) -> None:
        """Write it over its copy of *memory*; nothing may run yet. Raises ImageBroken, HostError."""
        with await self.memory(memory) as process:
            await anyio.to_thread.run_sync(load, difference, process, anyio.from_thread.check_cancelled)

    async def record_working_set(self, memory: Path, into: Path) -> None:
        """See the contract."""
        with await self.memory(memory) as process:
            await anyio.to_thread.run_sync(record, process, into)

    def stop(self) -> None:
        """SIGSTOP, which takes a moment to reach every thread: see ``stopped``. Raises HostError."""
        self._launcher.freeze(self._spawned)

    async def stopped(self) -> None:
        """Until no thread of it goes on any more."""
        await _until_stopped(self.pid)

    def go_on(self) -> None:
        """SIGCONT. Raises HostError."""
        self._launcher.thaw(self._spawned)


class GivenAway:
    """Descriptors opened to be given away; ours are closed at the end of the block."""

    def __init__(self, *descriptors: int) -> None:
        self._descriptors = list(descriptors)

    def __enter__(self) -> GivenAway:
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor in self._descriptors:
            os.close(descriptor)

    def open(self, path: Path, mode: int) -> int:
        """Raises ImageBroken for a file that is not there."""
        try:
            descriptor = os.open(path, mode | os.O_CLOEXEC)
        except OSError as error:
            raise errors.ImageBroken(
                f"{path} cannot be opened: {error.strerror}", hint="casemate image build --force makes it again"
            ) from error
        self._descriptors.append(descriptor)
        return descriptor


def exit_of(spawned: Spawned) -> VmmExit:
    """bubblewrap reports a signal as 128 + its number."""
    status, starved = spawned.status, spawned.out_of_memory
    if status is None:
        return VmmExit(None, None)
    if status < 0:
        return VmmExit(None, -status, starved)
    return VmmExit(None, status - 128, starved) if status > 128 else VmmExit(status, None, starved)


def pair() -> tuple[socket.socket, socket.socket]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    ours.setblocking(False)
    return ours, theirs


def file_of(what: str, spec: MachineSpec, files: Mapping[str, Path]) -> Path:
    if what.startswith("drive "):
        return spec.drives[int(what.removeprefix("drive "))].path
    return files[what]


async def _until_stopped(pid: int) -> None:
    """The signal takes a moment to reach every thread. Where the kernel does not show them, nobody waits."""
    with anyio.move_on_after(STOPPED_S):
        while _is_going_on(pid):
            await anyio.sleep(0.001)


def _is_going_on(pid: int) -> bool:
    try:
        threads = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/stat")]
    except OSError:  # one of them has just ended
        return True
    return any(thread.rpartition(")")[2].split()[0] not in ENDED_OR_STOPPED for thread in threads)
