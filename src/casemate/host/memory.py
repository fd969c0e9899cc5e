"""Memory as the kernel counts it."""

from __future__ import annotations

from pathlib import Path


def private_mib(pid: int) -> int | None:
    """A process's anonymous memory, rounded up; None when it has ended.

    Pages of a mapped file that it wrote are anonymous, those it only reads are not: what a clone costs.
    Source: proc_pid_status(5), readable for every uid, unlike smaps
    """
    try:
        return _field_mib(Path(f"/proc/{pid}/status"), "RssAnon")
    except (FileNotFoundError, ProcessLookupError, KeyError):
        return None


def available_mib() -> int:
    """What can be had without swapping. Source: proc_meminfo(5)"""
    return _field_mib(Path("/proc/meminfo"), "MemAvailable")


def _field_mib(path: Path, name: str) -> int:
    for line in path.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return -(-int(line.split()[1]) // 1024)
    raise KeyError(name)
