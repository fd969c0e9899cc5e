"""The Firecracker driver of the contract: plans become processes in their jails, calls become acts."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import time
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import structlog

from casemate import errors
from casemate.config import Settings
from casemate.host import Launcher, Spawned
from casemate.host.jailer import FILTER, Jailer
from casemate.vmm.contract import Accelerator, Isolation, Kernel, MachineSpec, Platform, SnapshotFiles
from casemate.vmm.firecracker import calls
from casemate.vmm.firecracker.api import Api, open_api
from casemate.vmm.firecracker.builds import Build, find_kept_build
from casemate.vmm.firecracker.exchange import FOLDER, Exchange, connect_in, open_exchange
from casemate.vmm.firecracker.machine import FirecrackerMachine
from casemate.vmm.firecracker.plan import (
    API,
    KERNEL_ARGUMENTS,
    LOG,
    METRICS,
    Plan,
    configuration,
    plan_boot,
    plan_restore,
)
from casemate.vmm.firecracker.tail import Tail
from casemate.vmm.firecracker.versions import check_version
from casemate.vmm.process import GivenAway, VmmProcess, exit_of, file_of
from casemate.vmm.processor import host_tsc_khz, processor_features, processor_name
from casemate.vmm.working_set import ReadAhead

API_S = 10.0  # from the start of the process until it takes a connection
LOAD_S = 60.0  # a restore maps its memory; a kernel and an initrd are read
FIRST_WAIT_S, LONGEST_WAIT_S = 0.0005, 0.02
EXIT_TOLD_S = 1.0
EVIDENCE_BYTES = 16_384
log = structlog.get_logger()


class FirecrackerDriver:
    """Machines of one build of Firecracker, under KVM."""

    isolation: Isolation = "hardware"
    accelerator: Accelerator = "kvm"
    memory_is_file = False
    kernel_arguments = " ".join(KERNEL_ARGUMENTS)
    # Ours, from the first moment on; its own, one for each kind of thread, are on when a guest is there
    filters = (f"casemate:{FILTER}", "firecracker")

    def __init__(self, settings: Settings, launcher: Launcher, build: Build) -> None:
        self._settings = settings
        self._launcher = launcher
        self._build = build
        self._ahead = ReadAhead()

    @property
    def namespaces(self) -> frozenset[str]:
        """A jailer makes devices, for which the host's own root is needed: no user namespace then."""
        apart = frozenset({"cgroup", "ipc", "mnt", "net", "pid", "uts"})
        return apart if self._launcher.privileged else apart | {"user"}

    async def platform(self) -> Platform:
        return Platform(
            vmm="firecracker",
            version=f"Firecracker v{self._build.version}",
            vmm_sha256=self._build.sha256,
            machine=configuration(),
            cpu=f"host on {processor_name()}",
            accelerator="kvm",
            cpu_features=processor_features(),
            tsc_khz=host_tsc_khz() or 0,
        )

    @asynccontextmanager
    async def boot(self, spec: MachineSpec, kernel: Kernel, memory: Path) -> AsyncIterator[FirecrackerMachine]:
        plan = plan_boot(spec, kernel, privileged=self._launcher.privileged)
        memory.touch(mode=0o600, exist_ok=False)
        os.truncate(memory, spec.memory_mib << 20)
        files = {"memory": memory, "kernel": kernel.vmlinux, "initrd": kernel.initrd}
        async with self._machine(spec, plan, self._build, files, booted_memory=memory) as machine:
            yield machine

    @asynccontextmanager
    async def restore(
        self,
        spec: MachineSpec,
        snapshot: SnapshotFiles,
        *,
        difference: Path | None = None,
        vmm_sha256: str | None = None,
    ) -> AsyncIterator[FirecrackerMachine]:
        build = self._build
        if vmm_sha256 not in (None, build.sha256):
            build = await anyio.to_thread.run_sync(find_kept_build, self._kept, vmm_sha256)
            check_version(build.version, known_bad_allowed=self._settings.allow_known_bad_vmm)
        plan = plan_restore(spec, build.version, privileged=self._launcher.privileged)
        files = {"memory": snapshot.memory, "state": snapshot.state}
        await self._ahead.of(snapshot)
        async with self._machine(spec, plan, build, files) as machine:
            if difference is not None:
                await machine.load_difference(snapshot.memory, difference)
            yield machine

    def describe(self, spec: MachineSpec, snapshot: SnapshotFiles) -> Mapping[str, Any]:
        plan = plan_restore(spec, self._build.version, privileged=self._launcher.privileged)
        files = {"memory": snapshot.memory, "state": snapshot.state} | _binaries(self._build)
        files |= {f"drive {index}": drive.path for index, drive in enumerate(spec.drives)}
        return {
            "command": list(plan.command),
            "jail": plan.jail.to_json(),
            "descriptors": [asdict(d) | {"path": str(files.get(d.what, ""))} for d in plan.descriptors],
            "calls": [asdict(call) for call in plan.calls],
        }

    @property
    def _kept(self) -> Path:
        return self._settings.home / "vmm"

    @asynccontextmanager
    async def _machine(
        self,
        spec: MachineSpec,
        plan: Plan,
        build: Build,
        files: Mapping[str, Path],
        *,
        booted_memory: Path | None = None,
    ) -> AsyncIterator[FirecrackerMachine]:
        """Read down to start, read up to stop."""
        async with AsyncExitStack() as held:
            exchange = await held.enter_async_context(open_exchange(self._settings.run / FOLDER / spec.guest_id))
            said_read, said_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
            console, said, metrics = Tail(said_read), Tail(exchange.open_pipe(LOG)), Tail(exchange.open_pipe(METRICS))
            for tail in (console, said, metrics):
                held.callback(tail.close)
            with GivenAway(said_write) as given:
                found = {"exchange": exchange.path} | _binaries(build) | dict(files)
                numbers = [said_write]
                for wanted in plan.descriptors:
                    numbers.append(_open(given, file_of(wanted.what, spec, found), writable=wanted.writable))
                began = time.perf_counter()
                spawned = await held.enter_async_context(
                    self._launcher.spawn(plan.jail, plan.command, numbers, said=said_read)
                )
            spawn_ms = (time.perf_counter() - began) * 1e3
            for tail in (console, said, metrics):
                tail.follow()
            try:
                connected = await _connect(exchange, spawned, spec.guest_id)
                api = await held.enter_async_context(open_api(connected, spec.guest_id))
                await _configure(api, exchange, plan)
                tasks = await held.enter_async_context(_open_tasks(spec.guest_id))
                machine = FirecrackerMachine(
                    VmmProcess(self._launcher, spawned),
                    api,
                    exchange,
                    console,
                    metrics,
                    tasks,
                    booted_memory,
                    spawn_ms,
                )
                held.callback(machine.close_stream)
                yield machine
            except errors.VmmError as error:
                await _add_evidence(error, spawned, plan, console, said)
                raise


def _open(given: GivenAway, path: Path, *, writable: bool) -> int:
    """It is opened again by its path in the jail, as another uid. To all others the folder above it is closed.

    Raises ImageBroken, HostError.
    """
    descriptor = given.open(path, os.O_RDWR if writable and not path.is_dir() else os.O_RDONLY)
    mode, wanted = os.fstat(descriptor).st_mode, 0o006 if writable else 0o004
    if mode & wanted != wanted:
        try:
            os.fchmod(descriptor, stat.S_IMODE(mode) | wanted)
        except OSError as error:
            raise errors.HostError(f"{path} cannot be opened to a VMM: {error.strerror}") from error
    return descriptor


async def _configure(api: Api, exchange: Exchange, plan: Plan) -> None:
    """Nothing of its guest has run when the exchange is shut."""
    running = [call for call in plan.calls if call == calls.start()]
    for call in plan.calls:
        if call not in running:
            await api.do(call, LOAD_S)
    exchange.shut()
    for call in running:
        await api.do(call, LOAD_S)


async def _connect(exchange: Exchange, spawned: Spawned, guest_id: str) -> socket.socket:
    """To its API, as soon as it listens. Raises VmmExited when it ends before that, VmmRefused when it is late."""
    pause_s = FIRST_WAIT_S
    deadline = anyio.current_time() + API_S
    connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        while True:
            try:
                connect_in(exchange.folder, API, connected)
                return connected
            except (FileNotFoundError, ConnectionRefusedError) as error:
                if spawned.exited.is_set():
                    raise errors.VmmExited(f"guest {guest_id}: its VMM ended before its API answered") from error
                if anyio.current_time() > deadline:
                    raise errors.VmmRefused(f"guest {guest_id}: no API of its VMM within {API_S:g} s") from error
            await anyio.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_WAIT_S)
    except BaseException as error:
        connected.close()
        if isinstance(error, OSError):
            raise errors.VmmRefused(f"guest {guest_id}: the API of its VMM cannot be reached: {error}") from error
        raise


@asynccontextmanager
async def _open_tasks(guest_id: str) -> AsyncIterator[Any]:
    """What runs beside a machine, and ends with it. Yields the function that starts one."""
    running: set[asyncio.Task[None]] = set()

    def start(work: Coroutine[Any, Any, None]) -> None:
        running.add(asyncio.get_running_loop().create_task(work))

    try:
        yield start
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.lowlevel.checkpoint()  # one that never began would not close what it was given
            for task in running:
                task.cancel()
            for ended in await asyncio.gather(*running, return_exceptions=True):
                if isinstance(ended, Exception):
                    log.warning("relay ended", guest=guest_id, error=repr(ended))


def _binaries(build: Build) -> dict[str, Path]:
    return {"firecracker": build.firecracker, "jailer": build.jailer}


async def _add_evidence(error: errors.VmmError, spawned: Spawned, plan: Plan, console: Tail, said: Tail) -> None:
    """The crash report: how it ended, the last it said of itself, and the last that its guest said."""
    if isinstance(error, errors.VmmExited):
        with anyio.move_on_after(EXIT_TOLD_S):
            await spawned.exited.wait()
    texts = {"log": said.read(), "console": console.read()}
    last = {name: text[-EVIDENCE_BYTES:].decode(errors="replace") for name, text in texts.items()}
    jailed = isinstance(plan.jail, Jailer)
    error.evidence |= {"argv": list(plan.command), "jailer": jailed, "exit": str(exit_of(spawned))} | last
    if not error.hint and (fault := _fault_of(last["log"]) or last["console"].strip().rpartition("\n")[2]):
        error.hint = f"it said: {fault[:300]}"


def _fault_of(said: str) -> str:
    """Why KVM gave up the guest, where it did; else the last error that is told."""
    lines = said.splitlines()[::-1]
    return next((line for mark in ("KVM_EXIT", ":ERROR]") for line in lines if mark in line), "")
