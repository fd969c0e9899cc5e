"""A machine as QEMU's command line. Pure: a spec goes in, argv and what its descriptors are come out.

Why each odd switch: ``pic=off,pit=on``, or Linux 6.12 now and then dies in early boot (it skips the legacy
PIC, whose vectors then look like exceptions). ``share=off,readonly=on,rom=off`` maps the template's memory
MAP_PRIVATE from a file opened read-only. ``send-configuration=off``: a clone's device state comes without the section
on the configuration that a booted machine has. Only who loads it may be told so: QEMU 10 aborts if it migrates.
``werror=report``: a full host disk is the guest's error, not a stopped VM. ``file.locking=off``: a disk
that is passed as descriptors cannot be locked by path, and belongs to this machine alone. ``mem-merge=off``: pages
that the kernel shares between guests tell one of them, by their write times, what is in another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from casemate.host import Bind, Jail, Limits
from casemate.vmm.contract import Accelerator, Kernel, MachineSpec
from casemate.vmm.descriptors import Descriptor, Numbers

MEMORY, KERNEL, INITRD = "/guest/memory", "/guest/vmlinux", "/guest/initrd"
CONSOLE_BYTES = 65_536
STATE_SET = 9  # the fdset that device state is loaded from
MACHINE = "microvm,memory-backend=mem,rtc=on,pic=off,pit=on,mem-merge=off"
OVERHEAD_MIB = 128  # beside the guest's memory and the translated code
OWN_THREADS_PERCENT = 50  # for its main loop and its disk threads, beside one processor per vCPU
OWN_THREADS = 96  # QEMU's pool has up to 64, and there are bubblewrap, the main loop, RCU
FILTERS: dict[Accelerator, str | None] = {"tcg": "qemu-tcg", "kvm": None}  # ours; no list has been recorded under KVM
CPU_MODELS: dict[Accelerator, str] = {"tcg": "max", "kvm": "host"}
SECCOMP = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"


@dataclass(frozen=True, slots=True)
class Plan:
    """*command* runs in *jail*; *descriptors* in the order of their numbers, from 3 on."""

    jail: Jail
    command: tuple[str, ...]
    descriptors: tuple[Descriptor, ...]


def plan_boot(spec: MachineSpec, kernel: Kernel, accelerator: Accelerator, tb_size_mib: int, binary: str) -> Plan:
    """A cold boot; the machine's memory is a file it writes."""
    numbers = Numbers()
    binds = [
        Bind(numbers.add("closure"), "/usr"),
        Bind(numbers.add("memory", writable=True), MEMORY, writable=True),
        Bind(numbers.add("kernel"), KERNEL),
        Bind(numbers.add("initrd"), INITRD),
    ]
    command = _common(spec, accelerator, tb_size_mib, binary, numbers, f"mem-path={MEMORY},share=on")
    command += ["-kernel", KERNEL, "-initrd", INITRD, "-append", kernel.cmdline]
    return Plan(_jail(binds, spec, accelerator, tb_size_mib), tuple(command), tuple(numbers.taken))


def plan_restore(
    spec: MachineSpec, accelerator: Accelerator, tb_size_mib: int, binary: str, *, configured: bool = True
) -> Plan:
    """A clone, stopped before its first instruction; it waits to be told to load the device state.

    *configured*: that state is a booted machine's, not a clone's.
    """
    numbers = Numbers()
    binds = [Bind(numbers.add("closure"), "/usr"), Bind(numbers.add("memory"), MEMORY)]
    memory = f"mem-path={MEMORY},share=off,readonly=on,rom=off"
    command = _common(spec, accelerator, tb_size_mib, binary, numbers, memory)
    command += ["-add-fd", f"fd={numbers.add('state')},set={STATE_SET},opaque=ro"]
    command += ["-S", "-incoming", "defer"]
    command += [] if configured else ["-global", "migration.send-configuration=off"]
    return Plan(_jail(binds, spec, accelerator, tb_size_mib), tuple(command), tuple(numbers.taken))


def limits_of(spec: MachineSpec, tb_size_mib: int) -> Limits:
    """What one QEMU may use; docs/vmm-contract.md says how the figures were found."""
    return Limits(
        memory_bytes=spec.memory_mib + tb_size_mib + OVERHEAD_MIB << 20,
        cpu_percent=100 * spec.vcpus + OWN_THREADS_PERCENT,
        pids=spec.vcpus + OWN_THREADS,
    )


def _jail(binds: Sequence[Bind], spec: MachineSpec, accelerator: Accelerator, tb_size_mib: int) -> Jail:
    return Jail(tuple(binds), spec.guest_id, limits_of(spec, tb_size_mib), FILTERS[accelerator])


def _common(
    spec: MachineSpec, accelerator: Accelerator, tb_size_mib: int, binary: str, numbers: Numbers, memory: str
) -> list[str]:
    stream, monitor = numbers.add("stream"), numbers.add("monitor")
    return [
        binary,
        *("-name", f"guest={spec.guest_id}"),
        *("-M", MACHINE),
        *("-accel", "kvm" if accelerator == "kvm" else f"tcg,tb-size={tb_size_mib}"),
        *("-cpu", CPU_MODELS[accelerator]),
        *("-m", str(spec.memory_mib), "-smp", str(spec.vcpus)),
        *("-object", f"memory-backend-file,id=mem,size={spec.memory_mib}M,{memory}"),
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-sandbox", SECCOMP),
        *("-chardev", f"ringbuf,id=console,size={CONSOLE_BYTES}", "-serial", "chardev:console"),
        *_drives(spec, numbers),
        *("-object", "rng-builtin,id=entropy", "-device", "virtio-rng-device,rng=entropy"),
        *("-device", "virtio-serial-device", "-chardev", f"socket,id=agent,fd={stream}"),
        *("-device", "virtserialport,chardev=agent,name=agent"),
        *("-chardev", f"socket,id=monitor,fd={monitor}", "-mon", "chardev=monitor,mode=control"),
    ]


def _drives(spec: MachineSpec, numbers: Numbers) -> list[str]:
    words: list[str] = []
    for index, drive in enumerate(spec.drives):
        words += ["-add-fd", f"fd={numbers.add(f'drive {index}')},set={index},opaque=ro"]
        options = f"file=/dev/fdset/{index},format=raw,if=none,id=drive{index},werror=report,rerror=report"
        if drive.writable:
            words += ["-add-fd", f"fd={numbers.add(f'drive {index}', writable=True)},set={index},opaque=rw"]
            options += ",file.locking=off,discard=unmap"
        else:
            options += ",readonly=on"
        if drive.limit.bytes_per_s:
            options += f",throttling.bps-total={drive.limit.bytes_per_s}"
        if drive.limit.operations_per_s:
            options += f",throttling.iops-total={drive.limit.operations_per_s}"
        words += ["-drive", options, "-device", f"virtio-blk-device,drive=drive{index}"]
    return words


def arguments_text(words: Sequence[str]) -> str:
    """The machine's configuration in one line, without what differs between two clones."""
    skipped = {"-name", "-add-fd", "-m", "-smp"}
    kept, skip = [], False
    for word in words:
        if skip:
            skip = False
        elif word in skipped:
            skip = True
        elif "fd=" not in word:
            kept.append(word)
    return " ".join(kept)
