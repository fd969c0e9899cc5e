"""A guest of a few instructions, driven through the KVM ioctls, and the same loop run natively.

Started as a file by ``kvm.py`` in a process of its own (``python -I -S kvm_guest.py``): standard library only.
It may hang inside KVM_RUN and be killed at any moment, so it says what it knows line by line, as JSON:

    {"api": 12}  {"native_ms": 4.1}  {"step": "int3", "ok": true, "said": "…"}  {"rounds": 1000000, "ms": 0.4}
    {"guest_ms": 4.2}  {"refused": "KVM_CREATE_VM: …"}

The guest is in 64-bit mode from its first instruction: flat segments, one 2 MiB page mapped onto itself.

    0x1000 PML4   0x2000 PDPT   0x3000 PD   0x4000 GDT   0x5000 IDT   0x6000 code, 256 bytes a step
    0x8000 the bytes a step works on        0xf000 stack, downwards

Sources: Linux Documentation/virt/kvm/api.rst and include/uapi/linux/kvm.h; AMD64 manual, volumes 2 and 3.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import mmap
import os
import struct
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

CHUNK_ROUNDS = 1_000_000  # a word of progress after so many
CHUNKS = 10
BEST_OF = 3

KVM_GET_API_VERSION = 0xAE00
KVM_CREATE_VM = 0xAE01
KVM_GET_VCPU_MMAP_SIZE = 0xAE04
KVM_CREATE_VCPU = 0xAE41
KVM_SET_TSS_ADDR = 0xAE47
KVM_RUN = 0xAE80
KVM_SET_USER_MEMORY_REGION = 0x4020AE46
KVM_GET_SUPPORTED_CPUID = 0xC008AE05
KVM_SET_CPUID2 = 0x4008AE90
KVM_GET_REGS = 0x8090AE81
KVM_SET_REGS = 0x4090AE82
KVM_GET_SREGS = 0x8138AE83
KVM_SET_SREGS = 0x4138AE84

EXIT_IO, EXIT_HLT = 2, 5
EXIT_NAMES = {
    0: "unknown",
    1: "exception",
    6: "mmio: it read or wrote where it has no memory",
    8: "shutdown: a fault upon a fault",
    9: "the processor refused to enter the guest",
    17: "internal error: KVM could not emulate an instruction",
}

MEMORY_BYTES = 2 << 20
PML4, PDPT, PD, GDT, IDT, CODE, DATA, STACK = 0x1000, 0x2000, 0x3000, 0x4000, 0x5000, 0x6000, 0x8000, 0xF000
CODE_SELECTOR, DATA_SELECTOR = 0x08, 0x10
HANDLER = CODE + 0xF00
MARK = 0x5EED_CA5E_3A7E_0001

COUNT_DOWN = b"\xb9" + struct.pack("<I", CHUNK_ROUNDS) + b"\xff\xc9\x75\xfc"  # mov ecx, N; dec ecx; jnz
IRET_WITH_ONE = b"\xb8\x01\x00\x00\x00\x48\xcf"  # mov eax, 1; iretq


@dataclass(frozen=True)
class Step:
    """Code ending in ``hlt``, and what rax holds then if every instruction did its work."""

    name: str
    code: bytes
    rax: int


STEPS = (
    Step(
        "cmpxchg16b",
        b"\xf0\x48\x0f\xc7\x0f"  # lock cmpxchg16b [rdi]: 0 there, 0 in rdx:rax, rcx:rbx to be written
        b"\x0f\x94\xc0\x0f\xb6\xc0"  # setz al; movzx eax, al
        b"\xf4",
        rax=1,
    ),
    Step(
        "xsave/xrstor",
        b"\x31\xc9\x31\xd2\xb8\x03\x00\x00\x00\x0f\x01\xd1"  # xcr0 = x87 | SSE
        b"\x48\xb8" + struct.pack("<Q", MARK) + b"\x66\x48\x0f\x6e\xc0"  # movq xmm0, MARK
        b"\xb8\x03\x00\x00\x00\x31\xd2\x0f\xae\x27"  # xsave [rdi]
        b"\x66\x0f\xef\xc0"  # pxor xmm0, xmm0
        b"\x0f\xae\x2f"  # xrstor [rdi]
        b"\x66\x48\x0f\x7e\xc0\xf4",  # movq rax, xmm0
        rax=MARK,
    ),
    Step("int3", b"\x31\xc0\xcc\xf4", rax=1),  # xor eax, eax; int3; the handler leaves 1
)
LOOP = COUNT_DOWN + b"\xe6\xe9\xeb\xf3"  # out 0xe9, al; jmp to the start


class Refused(Exception):
    """KVM would not do what every usable KVM does."""


def say(**fact: Any) -> None:
    os.write(1, json.dumps(fact).encode() + b"\n")


def call(name: str, descriptor: int, request: int, argument: Any = 0) -> int:
    try:
        answer: int = fcntl.ioctl(descriptor, request, argument)
    except OSError as error:
        raise Refused(f"{name}: {os.strerror(error.errno or 0)}") from error
    return answer


def run_natively() -> float:
    """Milliseconds for the counted loop on the processor itself: the best of some tries."""
    with mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC) as page:
        page.write(COUNT_DOWN + b"\xc3")  # ret
        anchor = ctypes.c_char.from_buffer(page)
        count_down = ctypes.CFUNCTYPE(None)(ctypes.addressof(anchor))
        taken = []
        for _ in range(BEST_OF):
            start = time.perf_counter()
            for _ in range(CHUNKS):
                count_down()
            taken.append(time.perf_counter() - start)
        del anchor  # the page cannot be closed while something points at it
    return min(taken) * 1e3


def memory_image() -> bytes:
    """Page tables, descriptor tables and the code, as the guest finds them."""
    image = bytearray(0x10000)
    present_writable, huge = 0b11, 1 << 7
    struct.pack_into("<Q", image, PML4, PDPT | present_writable)
    struct.pack_into("<Q", image, PDPT, PD | present_writable)
    struct.pack_into("<Q", image, PD, 0 | present_writable | huge)
    struct.pack_into("<QQQ", image, GDT, 0, 0x00AF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF)
    interrupt_gate = 0x8E00
    struct.pack_into("<HHHHII", image, IDT + 3 * 16, HANDLER, CODE_SELECTOR, interrupt_gate, 0, 0, 0)
    for index, step in enumerate(STEPS):
        image[CODE + index * 256 : CODE + index * 256 + len(step.code)] = step.code
    loop_at = CODE + len(STEPS) * 256
    image[loop_at : loop_at + len(LOOP)] = LOOP
    image[HANDLER : HANDLER + len(IRET_WITH_ONE)] = IRET_WITH_ONE
    return bytes(image)


def segment(selector: int, kind: int, *, long: int = 0, system: bool = False) -> bytes:
    """struct kvm_segment, flat: base 0, limit 4 GiB (the task register: 0x67)."""
    limit, code_or_data, granular = (0x67, 0, 0) if system else (0xFFFF_FFFF, 1, 1)
    default_32 = 0 if system or long else 1
    return struct.pack("<QIH10B", 0, limit, selector, kind, 1, 0, default_32, code_or_data, long, granular, 0, 0, 0)


def special_registers(current: bytes) -> bytes:
    """struct kvm_sregs for 64-bit mode, with the rest as KVM made it."""
    code = segment(CODE_SELECTOR, 0xB, long=1)
    data = segment(DATA_SELECTOR, 0x3)
    task = segment(0, 0xB, system=True)
    ldt = current[168:192]
    tables = struct.pack("<QH6xQH6x", GDT, 3 * 8 - 1, IDT, 4 * 16 - 1)
    cr0 = 0x8001_0033  # PG, WP, NE, ET, MP, PE
    cr4 = 0x0004_0620  # OSXSAVE, OSXMMEXCPT, OSFXSR, PAE
    efer = 0x0500  # LMA, LME
    control = struct.pack("<6Q", cr0, 0, PML4, cr4, 0, efer)
    return code + data * 5 + task + ldt + tables + control + current[272:]


class VirtualCpu:
    """One vCPU with 2 MiB of memory."""

    def __init__(self, descriptor: int, memory: mmap.mmap, shared: mmap.mmap) -> None:
        self._descriptor = descriptor
        self._memory = memory
        self._shared = shared

    def start_at(self, index: int) -> None:
        """Fresh memory and registers; the next ``run`` begins with the code of that number."""
        self._memory[:0x10000] = memory_image()
        current = bytearray(312)
        call("KVM_GET_SREGS", self._descriptor, KVM_GET_SREGS, current)
        call("KVM_SET_SREGS", self._descriptor, KVM_SET_SREGS, special_registers(bytes(current)))
        rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp = 0, 1, 2, 0, 0, DATA, STACK, 0
        rip, flags = CODE + index * 256, 2
        registers = struct.pack("<18Q", rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, *[0] * 8, rip, flags)
        call("KVM_SET_REGS", self._descriptor, KVM_SET_REGS, registers)

    def run(self) -> int:
        """Run until the guest leaves for a reason of its own; the reason."""
        while True:
            try:
                fcntl.ioctl(self._descriptor, KVM_RUN, 0)
            except OSError as error:
                if error.errno != errno.EINTR:
                    raise Refused(f"KVM_RUN: {os.strerror(error.errno or 0)}") from error
            else:
                return int(struct.unpack_from("<I", self._shared, 8)[0])

    def rax(self) -> int:
        registers = bytearray(144)
        call("KVM_GET_REGS", self._descriptor, KVM_GET_REGS, registers)
        return int(struct.unpack_from("<Q", registers)[0])


@contextmanager
def open_cpu(kvm: int) -> Iterator[VirtualCpu]:
    vm = call("KVM_CREATE_VM", kvm, KVM_CREATE_VM)
    call("KVM_SET_TSS_ADDR", vm, KVM_SET_TSS_ADDR, 0x1000_0000)  # Intel keeps its real-mode helper there
    memory = mmap.mmap(-1, MEMORY_BYTES)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    region = struct.pack("<IIQQQ", 0, 0, 0, MEMORY_BYTES, address)
    call("KVM_SET_USER_MEMORY_REGION", vm, KVM_SET_USER_MEMORY_REGION, region)
    cpu = call("KVM_CREATE_VCPU", vm, KVM_CREATE_VCPU)
    entries = 256
    table = bytearray(struct.pack("<II", entries, 0)) + bytearray(entries * 40)
    call("KVM_GET_SUPPORTED_CPUID", kvm, KVM_GET_SUPPORTED_CPUID, table)
    call("KVM_SET_CPUID2", cpu, KVM_SET_CPUID2, table)
    shared = mmap.mmap(cpu, call("KVM_GET_VCPU_MMAP_SIZE", kvm, KVM_GET_VCPU_MMAP_SIZE))
    try:
        yield VirtualCpu(cpu, memory, shared)
    finally:
        shared.close()
        os.close(cpu)
        os.close(vm)


def try_step(cpu: VirtualCpu, index: int, step: Step) -> None:
    cpu.start_at(index)
    reason = cpu.run()
    if reason != EXIT_HLT:
        say(step=step.name, ok=False, said=EXIT_NAMES.get(reason, f"exit {reason}"))
    else:
        rax = cpu.rax()
        say(step=step.name, ok=rax == step.rax, said="done" if rax == step.rax else f"rax is {rax:#x}")


def time_loop(cpu: VirtualCpu) -> float:
    """Milliseconds for the counted loop in the guest; tells of each chunk."""
    cpu.start_at(len(STEPS))
    start = time.perf_counter()
    for chunk in range(CHUNKS):
        reason = cpu.run()
        if reason != EXIT_IO:
            raise Refused(f"the loop: {EXIT_NAMES.get(reason, f'exit {reason}')}")
        say(rounds=(chunk + 1) * CHUNK_ROUNDS, ms=(time.perf_counter() - start) * 1e3)
    return (time.perf_counter() - start) * 1e3


def main(device: str) -> None:
    try:
        say(native_ms=run_natively())
        kvm = os.open(device, os.O_RDWR | os.O_CLOEXEC)
        say(api=call("KVM_GET_API_VERSION", kvm, KVM_GET_API_VERSION))
        with open_cpu(kvm) as cpu:
            for index, step in enumerate(STEPS):
                try_step(cpu, index, step)
            say(guest_ms=min(time_loop(cpu) for _ in range(BEST_OF)))
    except Refused as error:
        say(refused=str(error))
    except OSError as error:
        say(refused=f"{error.filename or 'the native loop'}: {error.strerror}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "/dev/kvm")
