"""This host's processor: its name, and the rate of its time-stamp counter.

Software emulation hands that counter to its guests as it is. A guest that calibrates it by itself, against an emulated
timer, never finishes on a busy host: a vCPU that loses its core in the wrong microsecond measures nonsense. So it is
told. Source: tsc_early_khz and tsc=reliable in the kernel's admin-guide/kernel-parameters.rst; cpu_get_ticks in QEMU's
system/cpu-timers.c.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import platform
import time
from pathlib import Path

READ_TSC = bytes.fromhex("0f31 48c1e220 4809d0 c3")  # rdtsc; shl rdx, 32; or rax, rdx; ret
BRACKETS = 50  # the tightest of so many readings counts
BASE_S = 0.1


@functools.cache
def host_tsc_khz() -> int | None:
    """Kilohertz; None where there is no such counter. Takes a tenth of a second, once."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return None
    with mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC) as page:
        page.write(READ_TSC)
        place = ctypes.c_char.from_buffer(page)
        try:
            return _measure(ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(place)))
        finally:
            del place  # else the page can't be unmapped


def _measure(read_tsc: ctypes._CFunctionType) -> int:
    first_ns, first = _sample(read_tsc)
    time.sleep(BASE_S)
    last_ns, last = _sample(read_tsc)
    return round((last - first) * 1_000_000 / (last_ns - first_ns))


def _sample(read_tsc: ctypes._CFunctionType) -> tuple[int, int]:
    """A moment in nanoseconds and the counter at that moment."""
    best: tuple[int, int, int] | None = None
    for _ in range(BRACKETS):
        before = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)
        ticks = read_tsc()
        after = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)
        if best is None or after - before < best[0]:
            best = after - before, (before + after) // 2, ticks
    assert best is not None
    return best[1:]


def processor_name() -> str:
    """As the kernel has it."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def processor_features() -> str:
    """What the kernel says that it can do, sorted: a guest of KVM's may be given any of it."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(("flags", "Features")):
            return " ".join(sorted(line.partition(":")[2].split()))
    return ""
