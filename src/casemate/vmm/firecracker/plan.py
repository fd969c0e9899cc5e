"""A machine as Firecracker's arguments, the files of its jail and the calls of its API. Pure: a spec goes in.

Everything is at a short path of its own inside the jail, the same for every machine: a snapshot has the paths of its
drives and of its stream's socket in it, and its clones find their own files there. ``/exchange`` is the one folder: in
it the VMM makes its sockets and the state it saves; it writes its log and its metrics to named pipes that are there.
Source: the API description of the pinned release; docs/vmm-contract.md says what each call does.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from casemate.errors import NotSupported
from casemate.host import Bind, Jail, Limits
from casemate.host.jailer import FILTER, Jailer
from casemate.vmm.contract import Drive, Kernel, MachineSpec
from casemate.vmm.descriptors import Descriptor, Numbers
from casemate.vmm.firecracker import calls
from casemate.vmm.firecracker.calls import Bucket, Call, Limiter
from casemate.vmm.firecracker.versions import Version

EXCHANGE = "/exchange"
API, STREAM, LOG, METRICS = "api.sock", "stream.sock", "log", "metrics"  # in it
SAVED_STATE, SAVED_MEMORY = "state", "memory"  # in it, while it saves
KERNEL, INITRD, MEMORY, STATE = "/kernel", "/initrd", "/memory", "/state"
BINARY = "/usr/bin/firecracker"  # where there is no jailer
AGENT_PORT = 1024  # where the agent listens; see guest/transport.py
KERNEL_ARGUMENTS = ("console=ttyS0", "reboot=k", "panic=-1", "quiet", "pci=off")
MOST_MEMORY_MIB = (
    3072  # above that it is in two pieces, with a gap, and so is the file's mapping. Source: its layout.rs
)
OVERHEAD_MIB = 64  # beside the guest's memory; its own is under 6 MiB, the rest room for page cache
OWN_THREADS_PERCENT = 50  # for its event loop, which does the devices' work
OWN_THREADS = 8  # its API, its event loop, bubblewrap's two, the jailer before it
ENTROPY = Limiter(bandwidth=Bucket(size=65_536, refill_ms=1000))  # a guest that wants more has a generator of its own


@dataclass(frozen=True, slots=True)
class Plan:
    """The VMM in *jail* gets the words of *command*; *descriptors* count from 3 on; *calls* are made in order."""

    jail: Jail | Jailer
    command: tuple[str, ...]
    descriptors: tuple[Descriptor, ...]
    calls: tuple[Call, ...]


def plan_boot(spec: MachineSpec, kernel: Kernel, *, privileged: bool) -> Plan:
    """A cold boot. Its memory is its own; the file that is at ``/memory`` gets it when it is saved.

    *privileged*: the launcher is root, so that the jailer can do its work. Raises NotSupported.
    """
    numbers = Numbers()
    files = [
        Bind(numbers.add("memory", writable=True), MEMORY, writable=True),
        Bind(numbers.add("kernel"), KERNEL),
        Bind(numbers.add("initrd"), INITRD),
    ]
    made = [
        calls.metrics(f"{EXCHANGE}/{METRICS}"),
        calls.machine_config(spec.vcpus, spec.memory_mib),
        calls.boot_source(KERNEL, INITRD, kernel.cmdline),
        *(
            calls.drive(_drive_name(index), _drive_path(index), drive.writable, limiter_of(drive))
            for index, drive in enumerate(spec.drives)
        ),
        calls.vsock(f"{EXCHANGE}/{STREAM}"),
        calls.entropy(ENTROPY),
        calls.start(),
    ]
    return _plan(spec, numbers, files, made, privileged=privileged)


def plan_restore(spec: MachineSpec, version: Version, *, privileged: bool) -> Plan:
    """A clone, paused. Which devices it has is in the state; how fast its drives may be is said again."""
    numbers = Numbers()
    files = [Bind(numbers.add("memory"), MEMORY), Bind(numbers.add("state"), STATE)]
    # What it writes is tracked, so that saving its state later does not write all of its memory as well
    made = [
        calls.metrics(f"{EXCHANGE}/{METRICS}"),
        calls.load(STATE, MEMORY, track_dirty_pages=True, version=version),
    ]
    made += [
        calls.limit_drive(_drive_name(index), limiter)
        for index, drive in enumerate(spec.drives)
        if (limiter := limiter_of(drive)) is not None
    ]
    return _plan(spec, numbers, files, made, privileged=privileged)


def limits_of(spec: MachineSpec) -> Limits:
    """What one Firecracker may use."""
    return Limits(
        memory_bytes=spec.memory_mib + OVERHEAD_MIB << 20,
        cpu_percent=100 * spec.vcpus + OWN_THREADS_PERCENT,
        pids=spec.vcpus + OWN_THREADS,
    )


def limiter_of(drive: Drive) -> Limiter | None:
    """A second's worth at once, and no more."""
    if not drive.limit:
        return None
    byte_rate, operation_rate = drive.limit.bytes_per_s, drive.limit.operations_per_s
    return Limiter(
        bandwidth=Bucket(byte_rate, 1000) if byte_rate else None,
        ops=Bucket(operation_rate, 1000) if operation_rate else None,
    )


def configuration() -> str:
    """What all machines have alike, in one line: what a snapshot has to be restored with."""
    anywhere = Path("any")
    spec = MachineSpec("any", 1, 128, (Drive(anywhere), Drive(anywhere), Drive(anywhere, writable=True)))
    plan = plan_boot(spec, Kernel(anywhere, anywhere, " ".join(KERNEL_ARGUMENTS)), privileged=True)
    skipped = {"/machine-config", "/metrics"}  # how large it is has its own place, what it tells of itself is no part
    return "; ".join(f"{call} {json.dumps(call.body)}" for call in plan.calls if call.path not in skipped)


def _plan(spec: MachineSpec, numbers: Numbers, files: list[Bind], made: list[Call], *, privileged: bool) -> Plan:
    if spec.memory_mib > MOST_MEMORY_MIB:
        raise NotSupported(
            f"guest {spec.guest_id} has {spec.memory_mib} MiB: with Firecracker {MOST_MEMORY_MIB} is the most",
            hint="take a smaller shape, or vmm = 'qemu' in the settings",
        )
    binds = [*files, Bind(numbers.add("exchange"), EXCHANGE, writable=True)]
    binds += [
        Bind(numbers.add(f"drive {index}", writable=drive.writable), _drive_path(index), drive.writable)
        for index, drive in enumerate(spec.drives)
    ]
    words = ["--api-sock", f"{EXCHANGE}/{API}", "--log-path", f"{EXCHANGE}/{LOG}"]
    words += ["--level", "Info", "--show-level"]  # how a guest ended is no error to it, and said nowhere else
    executable = numbers.add("firecracker")
    if privileged:
        jailer = Jailer(tuple(binds), spec.guest_id, limits_of(spec), executable, numbers.add("jailer"))
        return Plan(jailer, tuple(words), tuple(numbers.taken), tuple(made))
    binds.append(Bind(executable, BINARY))
    jail = Jail(tuple(binds), spec.guest_id, limits_of(spec), FILTER, devices=("/dev/kvm",), output=True)
    return Plan(jail, (BINARY, "--id", spec.guest_id, *words), tuple(numbers.taken), tuple(made))


def _drive_name(index: int) -> str:
    return f"drive{index}"


def _drive_path(index: int) -> str:
    return f"/drive{index}"
