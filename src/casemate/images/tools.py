"""The one place from which this room starts other programs: a deadline, bounded evidence, typed errors.

Blocking: the daemon calls this room from a worker thread.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from casemate.errors import HostError, HostFull, ToolFailed, ToolMissing

Progress = Callable[[str, str, float | None], None]
"""``progress(step, message, fraction)``; the fraction is None where nobody knows."""

TAIL_LINES = 40
MAX_LINE_BYTES = 4096
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PACKAGE_OF = {
    "apt-get": "apt",
    "apt-cache": "apt",
    "depmod": "kmod",
    "dpkg-deb": "dpkg",
    "lz4": "lz4",
    "mkfs.erofs": "erofs-utils",
    "mkfs.ext4": "e2fsprogs",
    "mmdebstrap": "mmdebstrap",
    "newuidmap": "uidmap",
    "zstd": "zstd",
}

_UNREACHABLE = (
    "temporary failure resolving",
    "could not resolve",
    "could not connect",
    "connection timed out",
    "connection refused",
    "network is unreachable",
    "unable to connect",
)
_FULL = ("no space left on device", "disk quota exceeded", "you don't have enough free space")
_STALE = (
    "404  not found",
    "hash sum mismatch",
    "unable to locate package",
    "no package found",
    "can't find a source",
)


def no_progress(step: str, message: str, fraction: float | None) -> None:
    """For callers that don't watch."""


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Fixed where output is parsed or depends on it; proxies and TMPDIR pass through for apt's sake."""
    kept = {k: v for k, v in os.environ.items() if k.lower().endswith("_proxy") or k in ("HOME", "TMPDIR")}
    fixed = {"PATH": SYSTEM_PATH, "LC_ALL": "C.UTF-8", "TZ": "UTC", "DEBIAN_FRONTEND": "noninteractive"}
    return kept | fixed | dict(extra or {})


def run(
    argv: Sequence[str],
    *,
    timeout_s: float,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    on_line: Callable[[str], None] | None = None,
    max_output_bytes: int = 64 << 20,
) -> str:
    """Run *argv* to its end and return its standard output; each line of stderr goes to *on_line*.

    Raises ToolMissing, ToolFailed (evidence: argv, exit, last lines), HostFull when the disk is full.
    The program's whole process group is gone when this returns, also after a time-out.
    """
    try:
        process = subprocess.Popen(
            list(argv),
            cwd=cwd,
            env=environment(env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except FileNotFoundError as error:
        package = PACKAGE_OF.get(argv[0], argv[0])
        raise ToolMissing(
            f"{argv[0]} is not installed",
            hint=f"run `casemate setup` or: apt-get install {package}",
            evidence={"argv": list(argv)},
        ) from error
    return _finish(process, list(argv), timeout_s, on_line, max_output_bytes)


def _finish(
    process: subprocess.Popen[bytes],
    argv: list[str],
    timeout_s: float,
    on_line: Callable[[str], None] | None,
    max_output_bytes: int,
) -> str:
    tail: deque[str] = deque(maxlen=TAIL_LINES)
    out = bytearray()
    overrun = threading.Event()

    def expire() -> None:
        overrun.set()
        _kill_group(process)

    def read_errors() -> None:
        assert process.stderr is not None
        while raw := process.stderr.readline(MAX_LINE_BYTES):
            line = raw.decode(errors="replace").rstrip()
            tail.append(line)
            if on_line:
                on_line(line)

    deadline = threading.Timer(timeout_s, expire)
    errors = threading.Thread(target=read_errors, name=f"stderr of {argv[0]}")
    deadline.start()
    errors.start()
    try:
        assert process.stdout is not None
        while piece := process.stdout.read1(1 << 16):  # type: ignore[attr-defined]
            if len(out) < max_output_bytes:
                out += piece
        errors.join()
        status = process.wait()
    finally:
        deadline.cancel()
        _kill_group(process)
        process.wait()
        for stream in (process.stdout, process.stderr):
            if stream:
                stream.close()
    if overrun.is_set():
        raise ToolFailed(
            f"{argv[0]} did not finish within {timeout_s:g} s",
            hint="see the last lines in the evidence; a slow mirror or disk is the usual reason",
            evidence={"argv": argv, "last_lines": list(tail)},
        )
    if status != 0:
        raise explain(argv, status, [*tail, *out[-2000:].decode(errors="replace").splitlines()])
    return out.decode(errors="replace")


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def explain(argv: Sequence[str], status: int, lines: Sequence[str]) -> Exception:
    """The error for a program that failed: what a person can do about it, guessed from its last lines."""
    evidence = {"argv": list(argv), "exit": status, "last_lines": list(lines)[-TAIL_LINES:]}
    text = "\n".join(lines).lower()
    if any(sign in text for sign in _FULL):
        return HostFull(
            f"{argv[0]}: the disk is full",
            hint="free some space (the python image needs about 3 GiB while it is built) and try again",
            evidence=evidence,
        )
    if any(sign in text for sign in _UNREACHABLE):
        return HostError(
            "the package registry is out of reach",
            hint="check the network, the proxy settings and the mirrors in /etc/apt, then try again",
            evidence=evidence,
        )
    if any(sign in text for sign in _STALE):
        return ToolFailed(
            f"{argv[0]} does not find a package in the lists it has",
            hint="the archive changed since the lists were made: try again, with --force",
            evidence=evidence,
        )
    reason = next((line for line in reversed(lines) if line.strip()), "no output")
    return ToolFailed(
        f"{argv[0]} failed with status {status}: {reason.strip()[:300]}",
        hint="the last lines it wrote are in the evidence",
        evidence=evidence,
    )
