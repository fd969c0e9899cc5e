"""What every driver of a VMM promises: a spec goes in, a machine comes out.

Nothing above this file knows which VMM runs. ``docs/vmm-contract.md`` maps each method to
QEMU's monitor commands and to Firecracker's API calls.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from casemate.host import Account
from casemate.vmm.difference import Difference

Isolation = Literal["hardware", "emulated"]
Accelerator = Literal["kvm", "tcg"]


@dataclass(frozen=True, slots=True)
class RateLimit:
    """How fast a drive is at most, reads and writes together; 0: as fast as it goes. A guest that wants more waits."""

    bytes_per_s: int = 0
    operations_per_s: int = 0

    def __bool__(self) -> bool:
        return bool(self.bytes_per_s or self.operations_per_s)


UNLIMITED = RateLimit()


@dataclass(frozen=True, slots=True)
class Drive:
    """One virtio block device. The guest sees the drives in order: /dev/vda, /dev/vdb, ..."""

    path: Path
    writable: bool = False
    limit: RateLimit = UNLIMITED


@dataclass(frozen=True, slots=True)
class Kernel:
    """What a cold boot starts; a restore needs none of it."""

    vmlinux: Path
    initrd: Path
    cmdline: str


@dataclass(frozen=True, slots=True)
class MachineSpec:
    """One machine. *guest_id* (the sandbox's id) names everything of it on the host."""

    guest_id: str
    vcpus: int
    memory_mib: int
    drives: tuple[Drive, ...]


@dataclass(frozen=True, slots=True)
class SnapshotFiles:
    """A stopped machine: its memory (memory_mib MiB, sparse, mapped copy-on-write) and its device state.

    *working_set*: where it may be recorded what a clone needs of the memory first; see working_set.py.
    """

    memory: Path
    state: Path
    working_set: Path | None = None


@dataclass(frozen=True, slots=True)
class Platform:
    """What a snapshot only fits together with; compared before a restore (sandbox/fitness.py), for a VMM does not."""

    vmm: str  # "qemu"
    version: str  # as the VMM prints it
    vmm_sha256: str
    machine: str  # the machine's configuration, one line
    cpu: str  # the CPU model as given to the VMM and the host CPU's name
    accelerator: Accelerator
    cpu_features: str  # what the guest's CPU has, as the VMM names it: words in order
    tsc_khz: int  # the rate of the clock that guests are given; 0: none is


@dataclass(frozen=True, slots=True)
class VmmExit:
    """How a VMM process ended: an exit status, or the signal that ended it."""

    status: int | None
    signal: int | None
    out_of_memory: bool = False  # it was over its memory limit, and the kernel killed it


class Machine(Protocol):
    """A live VMM process with one guest. Closed by leaving the driver's context manager, which kills it."""

    @property
    def pid(self) -> int:
        """Of the VMM itself, as the host's /proc has it."""

    @property
    def stream(self) -> socket.socket:
        """The host's end of the one byte stream; non-blocking. Replaced by reopen_stream.

        There is one from the start of a booted machine on; of a restored one only when ``unpause`` has returned.
        """

    @property
    def stream_survives(self) -> bool:
        """Whether the stream goes on, byte by byte, in a machine that is saved, and in one restored from that.

        Where it does not, the guest hears it break when ``save_state`` is called and waits for another, and the host's
        end is of no use from then on: in the machine that goes on ``reopen_stream`` makes the next one.
        """

    async def unpause(self) -> None:
        """Let the vCPUs run. Raises VmmRefused, VmmExited."""

    async def pause(self) -> None:
        """Stop the vCPUs; the guest's clocks stand still. Raises VmmRefused, VmmExited."""

    async def save_state(self, into: Path) -> None:
        """Write the paused machine's device state into the new file *into*; memory is the host's business.

        Not synchronised to the disk. Cancelled: *into* may be partial; the machine stays paused.
        Raises VmmRefused, VmmExited, HostFull; NotSupported when this VMM cannot do it for a clone.
        """

    async def save_difference(self, memory: Path, into: Path) -> Difference:
        """Write what the paused clone has written, beside *memory* that it was restored from, into the new file *into*.

        Synchronised to the disk. Cancelled or failed: *into* may be partial; the machine stays paused.
        Raises StateConflict when it is not paused; HostFull, HostError, VmmExited.
        """

    async def save_memory(self, memory: Path, into: Path) -> int:
        """Write what the paused clone has written, beside *memory* that it was restored from, on *into*, a copy of it.

        How many bytes that was; *into* is then all of its memory. Not synchronised to the disk. Cancelled or failed:
        *into* may be half written; the machine stays paused. Raises as save_difference.
        """

    async def record_working_set(self, memory: Path, into: Path) -> None:
        """Write which parts of *memory* this clone has touched to the new file *into*. Raises HostError, VmmExited."""

    async def freeze(self) -> None:
        """Stop the VMM process: it costs no CPU; the guest's clocks go on, and it notices nothing but the hour.

        Waits for a monitor command under way. Until ``thaw`` every method that needs the VMM raises StateConflict at
        once; ``console`` gives what it held; leaving the driver's block kills it all the same. Raises HostError.
        """

    async def thaw(self) -> None:
        """Let a frozen VMM process go on. Raises HostError."""

    async def reopen_stream(self) -> socket.socket:
        """Replace a lost stream by a fresh one; the guest sees the old one close. Raises VmmRefused, VmmExited."""

    async def wait_exit(self) -> VmmExit:
        """Return when the VMM process has ended, by itself or not."""

    async def account(self, memory: Path) -> Account:
        """What the kernel says of the VMM process, and how much of the file *memory* it has mapped.

        Raises VmmExited, HostError.
        """

    @property
    def console_written(self) -> int:
        """How many bytes the console had said in all when it was last asked for."""

    async def console(self) -> bytes:
        """The last output of the guest's console, at most 64 KiB; nothing when the VMM is gone. Never raises for it."""


class Driver(Protocol):
    """Makes machines of one VMM. Stateless between calls."""

    @property
    def isolation(self) -> Isolation: ...

    @property
    def accelerator(self) -> Accelerator: ...

    @property
    def kernel_arguments(self) -> str:
        """What this VMM's machines need on the guest kernel's command line (console, clocks, mitigations)."""

    @property
    def filters(self) -> tuple[str, ...]:
        """The filters of system calls its VMMs run under, by name; the kernel counts one each."""

    @property
    def namespaces(self) -> frozenset[str]:
        """Those that each of its VMMs has to itself, by the kernel's names; the attestation asks for these."""

    @property
    def memory_is_file(self) -> bool:
        """Whether a booted machine's memory is its file all the time; if not, it is once its state has been saved."""

    async def platform(self) -> Platform:
        """Measured once, then remembered. Raises ToolMissing when the VMM is not installed or too old."""

    def boot(self, spec: MachineSpec, kernel: Kernel, memory: Path) -> AbstractAsyncContextManager[Machine]:
        """A running machine, booted cold; the file *memory* (created, sparse) is its memory, see ``memory_is_file``.

        Entering raises VmmExited (evidence: argv, exit, console), VmmRefused, HostError.
        Leaving kills the VMM, whatever it does.
        """

    def restore(
        self,
        spec: MachineSpec,
        snapshot: SnapshotFiles,
        *,
        difference: Path | None = None,
        vmm_sha256: str | None = None,
    ) -> AbstractAsyncContextManager[Machine]:
        """A paused clone: *snapshot*'s memory is mapped copy-on-write and never written.

        *difference*: what ``save_difference`` wrote together with this state. *vmm_sha256*: by the VMM build of that
        digest, kept since it was installed, and not by the one that is installed now.
        Same raises and same leaving as boot; ToolMissing when that build is gone, ImageBroken for a bad file.
        """

    def describe(self, spec: MachineSpec, snapshot: SnapshotFiles) -> Mapping[str, Any]:
        """The restore as data, for inspection and for the benchmark's floor: argv, jail, descriptors, monitor steps."""
