"""The QEMU driver of the contract: plans become processes, monitor commands become acts."""

from __future__ import annotations

import base64
import errno
import os
import socket
import struct
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import anyio
import anyio.from_thread
import anyio.to_thread

from casemate import errors
from casemate.config import Settings
from casemate.host import Account, Launcher, ProcessMemory, Spawned, seccomp
from casemate.host.account import NAMESPACES
from casemate.host.jail import FIRST_DESCRIPTOR
from casemate.vmm.contract import Accelerator, Isolation, Kernel, MachineSpec, Platform, SnapshotFiles, VmmExit
from casemate.vmm.difference import Difference, save
from casemate.vmm.overlay import overlay
from casemate.vmm.process import Check, GivenAway, VmmProcess, exit_of, file_of, pair
from casemate.vmm.processor import host_tsc_khz, processor_name
from casemate.vmm.qemu.closure import BINARY, Closure, find_closure, find_kept
from casemate.vmm.qemu.features import find_features
from casemate.vmm.qemu.monitor import Monitor, open_monitor
from casemate.vmm.qemu.plan import CPU_MODELS, FILTERS, STATE_SET, Plan, arguments_text, plan_boot, plan_restore
from casemate.vmm.working_set import ReadAhead

SAVE_SET = 20  # the fdsets after it are those that device state is saved to
MAX_STATE_BYTES = 16 << 20  # a booted machine's has some 110 KB
STATE_HEAD = struct.Struct(">4sIB")
STATE_FORMAT, CONFIGURATION = (b"QEVM", 3), 7  # Source: QEMU's migration/savevm.h
ERROR_BYTES = 16_384
CONSOLE_BYTES = 65_536
T = TypeVar("T")


class QemuMachine:
    """One QEMU process. Made and closed by the driver only."""

    stream_survives = True

    def __init__(self, process: VmmProcess, monitor: Monitor, stream: socket.socket, *, cloned: bool) -> None:
        self._process = process
        self._cloned = cloned  # its memory is private: a migration would write all of it
        self._monitor = monitor
        self._stream = stream
        self._reopened = self._saved = 0
        self._console = b""
        self._console_written = 0

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def stream(self) -> socket.socket:
        return self._stream

    async def unpause(self) -> None:
        await self._monitor.execute("cont")

    async def pause(self) -> None:
        await self._monitor.execute("stop")

    async def save_state(self, into: Path) -> None:
        """Through memory of ours: QEMU's words for a full disk are those for any other failure."""
        with GivenAway(state := os.memfd_create("state", os.MFD_CLOEXEC)):
            with GivenAway() as given:  # a set's member has to be of the mode that QEMU asks for
                only_writable = given.open(Path(f"/proc/self/fd/{state}"), os.O_WRONLY)
                self._saved += 1  # a set for each: what is left in that of one that failed would be written to
                into_set = SAVE_SET + self._saved
                await self._monitor.add_descriptor(only_writable, into_set)
            await self._have_state_written(f"/dev/fdset/{into_set}")
            await self._monitor.execute("remove-fd", {"fdset-id": into_set})
            await anyio.to_thread.run_sync(_copy_state, state, into)

    async def _have_state_written(self, path: str) -> None:
        if not self._cloned:
            return await self._monitor.migrate("migrate", f"file:{path}")
        try:
            # live=false: else QEMU lets go of its disks, as if another took them over
            await self._monitor.execute("xen-save-devices-state", {"filename": path, "live": False})
        except errors.VmmRefused as error:
            if error.evidence.get("class") != "CommandNotFound":
                raise
            raise errors.NotSupported(
                f"this QEMU cannot save a clone's device state: {error.message}",
                hint="install one that was built with xen-save-devices-state, such as Debian's",
            ) from error

    async def save_difference(self, memory: Path, into: Path) -> Difference:
        return await self._saved_from(memory, into, save)

    async def save_memory(self, memory: Path, into: Path) -> int:
        return await self._saved_from(memory, into, overlay)

    async def _saved_from(self, memory: Path, into: Path, act: Callable[[ProcessMemory, Path, Check], T]) -> T:
        if (await self._monitor.execute("query-status"))["running"]:
            raise errors.StateConflict(f"process {self.pid}: its guest runs, so its memory cannot be saved")
        return await self._process.saved_from(memory, into, act)

    async def load_difference(self, memory: Path, difference: Path) -> None:
        """Before the device state is: nothing runs yet. Raises ImageBroken, HostError."""
        await self._process.load_difference(memory, difference)

    async def load_state(self) -> None:
        await self._monitor.migrate("migrate-incoming", f"file:/dev/fdset/{STATE_SET}")

    async def record_working_set(self, memory: Path, into: Path) -> None:
        await self._process.record_working_set(memory, into)

    async def freeze(self) -> None:
        await self.console()  # it cannot be asked then
        async with self._monitor.idle:
            self._process.stop()
            self._monitor.frozen = True
            await self._process.stopped()

    async def thaw(self) -> None:
        self._process.go_on()
        self._monitor.frozen = False

    async def reopen_stream(self) -> socket.socket:
        ours, theirs = pair()
        self._reopened += 1
        name = f"agent{self._reopened}"
        try:
            with theirs:
                await self._monitor.name_descriptor(theirs.fileno(), name)
            backend = {"type": "socket", "data": {"addr": {"type": "fd", "data": {"str": name}}, "server": False}}
            await self._monitor.execute("chardev-change", {"id": "agent", "backend": backend})
        except BaseException:
            ours.close()
            raise
        self._stream.close()
        self._stream = ours
        return ours

    async def wait_exit(self) -> VmmExit:
        return await self._process.wait_exit()

    async def account(self, memory: Path) -> Account:
        return await self._process.account(memory)

    @property
    def console_written(self) -> int:
        return self._console_written

    async def console(self) -> bytes:
        """Reading QEMU's ring empties it, so what was read is kept here."""
        if self._monitor.frozen:
            return self._console
        try:
            text = await self._monitor.execute(
                "ringbuf-read", {"device": "console", "size": CONSOLE_BYTES, "format": "utf8"}
            )
        except errors.VmmError:
            return b""
        fresh = str(text).encode(errors="replace")
        self._console_written += len(fresh)
        self._console = (self._console + fresh)[-CONSOLE_BYTES:]
        return self._console

    def close_stream(self) -> None:
        self._stream.close()


class QemuDriver:
    """Machines of the installed QEMU, under KVM or by software emulation."""

    def __init__(self, settings: Settings, launcher: Launcher, accelerator: Accelerator) -> None:
        self._settings = settings
        self._launcher = launcher
        self._accelerator: Accelerator = accelerator
        self._ahead = ReadAhead()
        self._closure: Closure | None = None
        self._platform: Platform | None = None

    @property
    def isolation(self) -> Isolation:
        return "hardware" if self._accelerator == "kvm" else "emulated"

    @property
    def accelerator(self) -> Accelerator:
        return self._accelerator

    @property
    def kernel_arguments(self) -> str:
        words = list(self._constant_arguments)
        if self._accelerator == "tcg" and (khz := host_tsc_khz()):
            words += [f"tsc_early_khz={khz}", "tsc=reliable"]
        return " ".join(words)

    @property
    def _constant_arguments(self) -> list[str]:
        """Those that two measurements of one clock do not tell apart."""
        words = ["console=ttyS0", "reboot=t", "panic=-1", "quiet"]
        if self._accelerator == "tcg":
            # Speculation cannot leak through an emulated CPU; on a real one the mitigations stay.
            words.append("mitigations=off")
        return words

    @property
    def filters(self) -> tuple[str, ...]:
        ours = FILTERS[self._accelerator]
        return (*((f"casemate:{ours}",) if ours else ()), "qemu:-sandbox")

    memory_is_file = True

    @property
    def namespaces(self) -> frozenset[str]:
        return frozenset(NAMESPACES)

    async def platform(self) -> Platform:
        if self._platform is None:
            self._platform = await self._measure_platform()
        return self._platform

    async def _measure_platform(self) -> Platform:
        closure = await self._find_closure()
        features = await anyio.to_thread.run_sync(find_features, closure, self._accelerator)
        # The room for translated code is no part of a machine: a guest does not see it, a device state has none of it
        example = plan_restore(MachineSpec("any", 1, 512, ()), self._accelerator, 0, "vmm")
        return Platform(
            vmm="qemu",
            version=closure.version,
            vmm_sha256=closure.sha256,
            machine=f"{arguments_text(example.command)} -append '{' '.join(self._constant_arguments)}'",
            cpu=f"{CPU_MODELS[self._accelerator]} on {processor_name()}",
            accelerator=self._accelerator,
            cpu_features=features,
            tsc_khz=host_tsc_khz() or 0,
        )

    @asynccontextmanager
    async def boot(self, spec: MachineSpec, kernel: Kernel, memory: Path) -> AsyncIterator[QemuMachine]:
        closure = await self._find_closure()
        plan = plan_boot(spec, kernel, self._accelerator, self._settings.tb_size_mib, BINARY)
        # Another uid than ours writes it, by our group and through the jail's bind alone
        memory.touch(mode=0o600, exist_ok=False)
        memory.chmod(0o666)  # the VMM has a uid of its own; to all others the folder above is closed
        files = {"closure": closure.usr, "memory": memory, "kernel": kernel.vmlinux, "initrd": kernel.initrd}
        async with self._machine(spec, plan, files) as machine:
            yield machine

    @asynccontextmanager
    async def restore(
        self,
        spec: MachineSpec,
        snapshot: SnapshotFiles,
        *,
        difference: Path | None = None,
        vmm_sha256: str | None = None,
    ) -> AsyncIterator[QemuMachine]:
        await self._ahead.of(snapshot)
        configured = _is_configured(snapshot.state)
        plan = plan_restore(spec, self._accelerator, self._settings.tb_size_mib, BINARY, configured=configured)
        usr = find_kept(self._kept, vmm_sha256) if vmm_sha256 else (await self._find_closure()).usr
        files = {"closure": usr, "memory": snapshot.memory, "state": snapshot.state}
        async with self._machine(spec, plan, files, cloned=True) as machine:
            if difference is not None:
                await machine.load_difference(snapshot.memory, difference)
            await machine.load_state()
            yield machine

    def describe(self, spec: MachineSpec, snapshot: SnapshotFiles) -> Mapping[str, Any]:
        """See the contract; only after ``platform`` was asked for."""
        assert self._closure is not None, "platform() comes first"
        configured = _is_configured(snapshot.state)
        plan = plan_restore(spec, self._accelerator, self._settings.tb_size_mib, BINARY, configured=configured)
        files = {"closure": self._closure.usr, "memory": snapshot.memory, "state": snapshot.state}
        files |= {f"drive {index}": drive.path for index, drive in enumerate(spec.drives)}
        info = FIRST_DESCRIPTOR + len(plan.descriptors)
        listed = None if plan.jail.filter is None else info + 1
        compiled = b"" if plan.jail.filter is None else seccomp.compiled(plan.jail.filter)
        jail = {"info_descriptor": info, "filter_descriptor": listed}
        return {
            "argv": plan.jail.argv(plan.command, info, filter_descriptor=listed),
            "command": list(plan.command),
            "jail": plan.jail.to_json() | jail | {"compiled_filter": base64.b64encode(compiled).decode()},
            "descriptors": [asdict(d) | {"path": str(files.get(d.what, ""))} for d in plan.descriptors],
            "monitor": [
                {
                    "execute": "migrate-set-capabilities",
                    "arguments": {"capabilities": [{"capability": "x-ignore-shared", "state": True}]},
                },
                {"execute": "migrate-incoming", "arguments": {"uri": f"file:/dev/fdset/{STATE_SET}"}},
                {"wait": "completed"},
                {"execute": "cont"},
            ],
            "uid": self._settings.uid_base + self._settings.uid_count - 1 if os.getuid() != 0 else None,
        }

    @property
    def _kept(self) -> Path:
        return self._settings.home / "vmm"

    async def _find_closure(self) -> Closure:
        if self._closure is None:
            self._closure = await anyio.to_thread.run_sync(find_closure, self._kept)
        return self._closure

    @asynccontextmanager
    async def _machine(
        self, spec: MachineSpec, plan: Plan, files: Mapping[str, Path], *, cloned: bool = False
    ) -> AsyncIterator[QemuMachine]:
        """Read down to start, read up to stop."""
        async with AsyncExitStack() as held:
            said_read, said_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
            held.callback(os.close, said_read)
            stream, their_stream = pair()
            monitor, their_monitor = pair()
            held.callback(stream.close)
            held.callback(monitor.close)
            with GivenAway(said_write) as given, their_stream, their_monitor:
                numbers = [said_write]
                sockets = {"stream": their_stream, "monitor": their_monitor}
                for wanted in plan.descriptors:
                    if wanted.what in sockets:
                        numbers.append(sockets[wanted.what].fileno())
                    else:
                        numbers.append(
                            given.open(file_of(wanted.what, spec, files), os.O_RDWR if wanted.writable else os.O_RDONLY)
                        )
                spawned = await held.enter_async_context(
                    self._launcher.spawn(plan.jail, plan.command, numbers, said_read)
                )
            try:
                control = await held.enter_async_context(open_monitor(monitor, spec.guest_id))
                machine = QemuMachine(VmmProcess(self._launcher, spawned), control, stream, cloned=cloned)
                held.callback(machine.close_stream)
                yield machine
            except errors.VmmExited as error:
                await _add_evidence(error, spawned, plan, said_read)
                raise


def _is_configured(state: Path) -> bool:
    """Whether a device state has the section that only a booted machine's has. Raises ImageBroken."""
    with GivenAway() as given:
        head = os.pread(given.open(state, os.O_RDONLY), STATE_HEAD.size, 0)
    if len(head) < STATE_HEAD.size or (found := STATE_HEAD.unpack(head))[:2] != STATE_FORMAT:
        raise errors.ImageBroken(f"{state} is no device state of QEMU's", hint="casemate image build --force makes it")
    return bool(found[2] == CONFIGURATION)


def _copy_state(state: int, into: Path) -> None:
    """Raises HostFull, HostError; VmmRefused for what no VMM's state is."""
    if not 0 < (size := os.fstat(state).st_size) <= MAX_STATE_BYTES:
        raise errors.VmmRefused(f"a device state of {size} bytes is none")
    try:
        with open(into, "xb", opener=lambda path, flags: os.open(path, flags | os.O_CLOEXEC, 0o600)) as file:
            file.write(os.pread(state, size, 0))
    except OSError as error:
        kind = errors.HostFull if error.errno in (errno.ENOSPC, errno.EDQUOT) else errors.HostError
        raise kind(f"{into} could not be written: {error.strerror}", hint="free some disk space") from error


async def _add_evidence(error: errors.VmmExited, spawned: Spawned, plan: Plan, said: int) -> None:
    with anyio.move_on_after(1):
        await spawned.exited.wait()
    try:
        text = os.read(said, ERROR_BYTES).decode(errors="replace")
    except BlockingIOError:
        text = ""
    error.evidence |= {"argv": list(plan.command), "exit": str(exit_of(spawned)), "stderr": text}
    if text and not error.hint:
        error.hint = f"it said: {text.strip().splitlines()[-1][:300]}"
