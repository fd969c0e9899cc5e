"""A VMM without a machine: the agent is coroutines of this process, the VMM's process a program that sleeps.

For sweeps over states and cancellations, where a real machine would cost a second each. It passes check_vmm, with a
stream that survives being saved (as QEMU's does) and with one that does not (as Firecracker's).
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.fakes.fake_guest import Guest

from casemate import errors, wire
from casemate.guest import handshake
from casemate.host import Account
from casemate.host.account import NAMESPACES
from casemate.host.ownership import own
from casemate.vmm import (
    Accelerator,
    Difference,
    Drive,
    Isolation,
    Kernel,
    MachineSpec,
    Platform,
    SnapshotFiles,
    VmmExit,
)

DIFFERENCE = b"a guest that writes nothing"
PLATFORM = Platform("fake", "1", "0" * 64, "one line", "no CPU", "tcg", "a b", 0)


ACCOUNT = Account(
    pid=0,
    executable_sha256=PLATFORM.vmm_sha256,
    private_bytes=0,
    shared_bytes=0,
    uid=1,
    capabilities=0,
    no_new_privs=True,
    seccomp_mode=2,
    seccomp_filters=1,
    namespaces=dict.fromkeys(NAMESPACES, "another"),
    cgroup=None,
    limits=None,
    rlimits={},
    oom_score_adj=500,
)


class _Nothing:
    """Where a hand-shake changes nothing."""

    def add_entropy(self, entropy: bytes) -> None: ...

    def set_clock(self, wall_clock_ns: int) -> None: ...

    def set_identity(self, hello: handshake.Hello, boot_id: str) -> None: ...


class Agent(Guest):
    """The fake guest, introduced as the agent is."""

    def __init__(self) -> None:
        super().__init__()
        self.alone = False
        self._handshake = handshake.Handshake(_Nothing(), "fake")  # type: ignore[arg-type]

    def _on(self, event: wire.Event) -> None:
        match event:
            case wire.Hello():
                self.connection.ready(self._handshake.apply(handshake.parse(event.body)))
            case wire.Opened(kind="control", params={"op": op}) if op != "activity":
                self.connection.accept(event.channel)
                self.connection.finish(event.channel)
            case _:
                super()._on(event)

    def reopen(self) -> socket.socket:
        """A fresh stream; what was half said on the old one is forgotten, unless both had agreed to rest."""
        self._connect()
        if not self.connection.resting:
            self.connection.lost()
        return self.host_end

    def wake_up(self, *, same_stream: bool) -> None:
        """In another machine, as it was: the conversation goes on where it stopped."""
        if same_stream:
            self._connect()
        else:
            self.reopen()
        self.running.clear()

    def _connect(self) -> None:
        self.host_end, self._stream = socket.socketpair()
        self.host_end.setblocking(False)
        self._stream.setblocking(False)


class FakeMachine:
    def __init__(
        self,
        spec: MachineSpec,
        saved: dict[bytes, Agent] | None = None,
        agent: Agent | None = None,
        *,
        stream_survives: bool = True,
    ) -> None:
        self._spec = spec
        self.stream_survives = stream_survives
        self.has_run = True  # so that it has a stream
        self._saved = {} if saved is None else saved
        self._process = subprocess.Popen(["sleep", "infinity"], stdin=subprocess.DEVNULL)
        self._exited = asyncio.Event()
        self._paused = self._frozen = False
        self._exit = VmmExit(None, None)
        self._pidfd = os.pidfd_open(self._process.pid)
        asyncio.get_running_loop().add_reader(self._pidfd, self._on_exit)
        self.agent = agent or Agent()
        self._stream = self.agent.host_end
        self._agent_task = asyncio.create_task(self.agent.run())

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def stream(self) -> socket.socket:
        if not self.has_run:
            raise errors.StateConflict("the fake VMM has no stream before its guest has run")
        return self._stream

    def _on_exit(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        status = self._process.wait()
        self._exit = VmmExit(status, None) if status >= 0 else VmmExit(None, -status)
        self._agent_task.cancel()
        self._exited.set()

    def _alive(self) -> None:
        if self._exited.is_set():
            raise errors.VmmExited("the fake VMM has ended")
        if self._frozen:
            raise errors.StateConflict("the fake VMM is frozen")

    async def unpause(self) -> None:
        await asyncio.sleep(0)
        self._alive()
        self._paused = self.agent.kept = False
        self.has_run = True
        self.agent.running.set()

    async def pause(self) -> None:
        await asyncio.sleep(0)
        self._alive()
        self._paused = True
        self.agent.running.clear()

    async def save_state(self, into: Path) -> None:
        await asyncio.sleep(0)
        self._alive()
        token = b"state " + os.urandom(8)
        self._saved[token] = self.agent
        self.agent.kept = True
        with into.open("xb") as file:
            file.write(token)
        if not self.stream_survives:
            await self._break_stream()

    async def _break_stream(self) -> None:
        """What the host has sent and the guest has not read is lost; the host reads to the end of what came.

        No program ends with it.
        """
        kept, self.agent.kept = self.agent.kept, True
        self._agent_task.cancel()
        await asyncio.wait([self._agent_task])
        self.agent.kept = kept

    async def save_difference(self, memory: Path, into: Path) -> Difference:
        await asyncio.sleep(0)
        self._alive()
        if not self._paused:
            raise errors.StateConflict("the fake guest runs")
        written = DIFFERENCE + self._spec.guest_id.encode()
        with into.open("xb") as file:
            file.write(written)
        return Difference(0, len(written), hashlib.sha256(written).hexdigest(), 0.0)

    async def save_memory(self, memory: Path, into: Path) -> int:
        await asyncio.sleep(0)
        self._alive()
        if not self._paused:
            raise errors.StateConflict("the fake guest runs")
        if into.stat().st_size != memory.stat().st_size:
            raise errors.HostError(f"{into} is no copy of {memory}")
        return 0

    async def record_working_set(self, memory: Path, into: Path) -> None:
        await asyncio.sleep(0)
        self._alive()
        with into.open("x") as file:
            json.dump({"format": 1, "page_bytes": 4096, "runs": [[0, 1]]}, file)

    async def freeze(self) -> None:
        await asyncio.sleep(0)
        if not self._exited.is_set():
            signal.pidfd_send_signal(self._pidfd, signal.SIGSTOP)
            os.waitid(os.P_PIDFD, self._pidfd, os.WSTOPPED | os.WEXITED | os.WNOWAIT)  # noqa: ASYNC222  # microseconds
        self._frozen = True
        self.agent.running.clear()

    async def thaw(self) -> None:
        await asyncio.sleep(0)
        if not self._exited.is_set():
            signal.pidfd_send_signal(self._pidfd, signal.SIGCONT)
        self._frozen = False
        if not self._paused:
            self.agent.running.set()

    async def reopen_stream(self) -> socket.socket:
        self._alive()
        await self._break_stream()
        self._stream.close()
        self._stream = self.agent.reopen()
        self._agent_task = asyncio.create_task(self.agent.run())
        return self._stream

    async def wait_exit(self) -> VmmExit:
        await self._exited.wait()
        return self._exit

    console_written = len(b"a fake console\n")

    async def account(self, memory: Path) -> Account:
        """As of a perfect one: what it would be, when it is a process that sleeps."""
        await asyncio.sleep(0)
        if self._exited.is_set():
            raise errors.VmmExited("the fake VMM has ended")
        return replace(ACCOUNT, pid=self.pid, private_bytes=self._spec.memory_mib << 20)

    async def console(self) -> bytes:
        return b"" if self._exited.is_set() else b"a fake console\n"

    async def close(self) -> None:
        if not self._exited.is_set():
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            await self._exited.wait()
        os.close(self._pidfd)
        await asyncio.wait([self._agent_task])
        self.agent._stream.close()
        self._stream.close()


class FakeDriver:
    isolation: Isolation = "emulated"
    accelerator: Accelerator = "tcg"
    kernel_arguments = "quiet"
    filters = ("fake",)
    namespaces = frozenset(NAMESPACES)
    memory_is_file = True
    stream_survives = True

    def __init__(self, *, stream_survives: bool | None = None) -> None:
        if stream_survives is not None:
            self.stream_survives = stream_survives
        self._saved: dict[bytes, Agent] = {}  # guests as they were when their state was saved
        self.latest: FakeMachine | None = None
        self.restores = 0  # how often a VMM was started with somebody's state

    async def platform(self) -> Platform:
        return PLATFORM

    @asynccontextmanager
    async def boot(self, spec: MachineSpec, kernel: Kernel, memory: Path) -> AsyncIterator[FakeMachine]:
        _must_be_there([kernel.vmlinux, kernel.initrd], spec.drives)
        with memory.open("xb") as file:
            file.truncate(spec.memory_mib << 20)
        async with self._machine(spec) as machine:
            yield machine

    @asynccontextmanager
    async def restore(
        self,
        spec: MachineSpec,
        snapshot: SnapshotFiles,
        *,
        difference: Path | None = None,
        vmm_sha256: str | None = None,
    ) -> AsyncIterator[FakeMachine]:
        _must_be_there([snapshot.memory, snapshot.state], spec.drives)
        if vmm_sha256 not in (None, PLATFORM.vmm_sha256):
            raise errors.ToolMissing("that build of the fake VMM is not kept")
        if difference is not None and not difference.read_bytes().startswith(DIFFERENCE):
            raise errors.ImageBroken(f"{difference} is no difference")
        self.restores += 1
        agent = None
        if difference is not None:
            agent = self._saved[snapshot.state.read_bytes()]
            agent.wake_up(same_stream=self.stream_survives)
        async with self._machine(spec, agent) as machine:
            await machine.pause()
            machine.has_run = self.stream_survives
            yield machine

    def describe(self, spec: MachineSpec, snapshot: SnapshotFiles) -> Mapping[str, Any]:
        return {"argv": ["sleep", "infinity"], "descriptors": [], "monitor": []}

    @asynccontextmanager
    async def _machine(self, spec: MachineSpec, agent: Agent | None = None) -> AsyncIterator[FakeMachine]:
        machine = self.latest = FakeMachine(spec, self._saved, agent, stream_survives=self.stream_survives)
        async with own("fake machine", machine.close):
            await asyncio.sleep(0)
            yield machine


def _must_be_there(files: Iterable[Path], drives: Iterable[Drive]) -> None:
    for path in (*files, *(drive.path for drive in drives)):
        if not path.is_file():
            raise errors.ImageBroken(f"{path} cannot be opened")
