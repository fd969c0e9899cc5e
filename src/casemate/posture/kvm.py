"""Is /dev/kvm usable? Measured by a guest of our own (``kvm_guest.py``), not believed.

On some hosts KVM opens, makes machines, and then runs their kernels in an instruction emulator: a thousand
times too slow, until it meets an instruction that the emulator does not know. Usable means: the guest does
``cmpxchg16b``, ``xsave``/``xrstor`` and ``int3``, and counts at most 3 times as long as the processor itself.

``run/host.json`` is written here (temporary name, rename), read here, and never deleted: another boot, kernel
or processor makes it stale.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from casemate.posture.check import Check, passed, read_fact, warned

DEVICE = Path("/dev/kvm")
PROBE_LIMIT_S = 2.0
SLOWEST_RATIO = 3.0
ROUNDS = 10_000_000
STEPS = ("cmpxchg16b", "xsave/xrstor", "int3")
FORMAT = 1
MAX_SAID_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the probe showed. The times are of the counted loop, None when it was not reached or not finished."""

    usable: bool
    found: str
    native_ms: float | None = None
    guest_ms: float | None = None


def host_identity() -> dict[str, str]:
    """What a verdict holds for: this boot, this kernel, this processor, and whether we may open the device."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in (read_fact("/proc/cpuinfo") or "").splitlines()
            if line.startswith("model name")
        ),
        "unknown",
    )
    uname = os.uname()
    return {
        "boot_id": read_fact("/proc/sys/kernel/random/boot_id") or "unknown",
        "kernel": f"{uname.release} {uname.version}",
        "cpu": model,
    }


def measure_kvm(device: Path = DEVICE, limit_s: float = PROBE_LIMIT_S) -> Verdict:
    """Run the tiny guest in a child that is killed after *limit_s*; never raises for what KVM does."""
    if not device.exists():
        return Verdict(False, f"no {device}")
    if not os.access(device, os.R_OK | os.W_OK):
        return Verdict(False, f"{device} is there, but not for uid {os.geteuid()}")
    facts, finished = _watch_probe(device, limit_s)
    return judge(facts, finished, limit_s)


def _watch_probe(device: Path, limit_s: float) -> tuple[list[dict[str, Any]], bool]:
    """What the probe said in its time, and whether it ended by itself."""
    script = Path(__file__).with_name("kvm_guest.py")
    deadline = time.monotonic() + limit_s
    said = b""
    with subprocess.Popen(
        [sys.executable, "-I", "-S", str(script), str(device)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as probe:
        assert probe.stdout is not None
        finished = False
        try:
            with selectors.DefaultSelector() as selector:
                selector.register(probe.stdout, selectors.EVENT_READ)
                while (left := deadline - time.monotonic()) > 0 and len(said) < MAX_SAID_BYTES:
                    if not selector.select(left):
                        continue
                    piece = os.read(probe.stdout.fileno(), 4096)
                    if not piece:
                        finished = True
                        break
                    said += piece
        finally:
            probe.kill()
    return [json.loads(line) for line in said.split(b"\n")[:-1]], finished


def judge(facts: list[dict[str, Any]], finished: bool, limit_s: float) -> Verdict:
    """The verdict on what a probe said. Pure."""
    known: dict[str, Any] = {}
    for fact in facts:
        known |= fact
    native_ms, guest_ms = known.get("native_ms"), known.get("guest_ms")
    steps = {fact["step"]: fact for fact in facts if "step" in fact}
    refused = known.get("refused")
    reasons = [f"{name}: {steps[name]['said']}" for name in STEPS if name in steps and not steps[name]["ok"]]
    if refused:
        reasons.append(str(refused))
    if not refused and any(name not in steps for name in STEPS):
        reasons.append(f"{'ended' if finished else 'stuck'} before {_first_missing(steps)}")
    if guest_ms is None:
        timing = _unfinished(known, limit_s)
    else:
        timing = f"{guest_ms:.1f} ms in a KVM guest"
        if native_ms and guest_ms > SLOWEST_RATIO * native_ms:
            reasons.append(f"{guest_ms / native_ms:.0f} times slower than the processor itself")
    own = "not measured" if native_ms is None else f"{native_ms:.1f} ms"
    found = f"{ROUNDS:.0e} rounds: {own} natively, {timing}".replace("1e+07", "10^7")
    usable = not reasons and native_ms is not None and guest_ms is not None
    if reasons:
        found += "; " + "; ".join(_shared(reasons))
    return Verdict(usable, found, native_ms, guest_ms)


def _first_missing(steps: dict[str, Any]) -> str:
    return next(name for name in STEPS if name not in steps)


def _shared(reasons: list[str]) -> list[str]:
    """Names that failed for the same reason, said once."""
    by_reason: dict[str, list[str]] = {}
    for reason in reasons:
        name, _, why = reason.partition(": ")
        by_reason.setdefault(why, []).append(name)
    return [f"{', '.join(names)}: {why}" if why else ", ".join(names) for why, names in by_reason.items()]


def _unfinished(known: dict[str, Any], limit_s: float) -> str:
    rounds, ms = known.get("rounds"), known.get("ms")
    if not rounds or not ms:
        return f"not finished in a KVM guest within {limit_s:g} s"
    return f"killed in a KVM guest after {limit_s:g} s (at its pace {ms / rounds * ROUNDS:.0f} ms)"


def find_verdict(run: Path, *, fresh: bool = False) -> Verdict:
    """The cached verdict on this host, or a measured one, kept in *run*/host.json where that can be written."""
    identity = host_identity() | {"device": _device_identity()}
    path = run / "host.json"
    if not fresh and (known := _load(path, identity)):
        return known
    verdict = measure_kvm()
    _store(path, identity, verdict)
    return verdict


def _device_identity() -> str:
    try:
        stat = DEVICE.stat()
    except FileNotFoundError:
        return "none"
    allowed = os.access(DEVICE, os.R_OK | os.W_OK)
    return f"{stat.st_rdev:x} {'open' if allowed else 'closed'} to uid {os.geteuid()}"


def _load(path: Path, identity: dict[str, str]) -> Verdict | None:
    try:
        stored = json.loads(path.read_bytes())
    except (OSError, ValueError):  # not there, not ours to read, or half a file of an older version
        return None
    if not isinstance(stored, dict) or stored.get("format") != FORMAT or stored.get("host") != identity:
        return None
    kvm = stored.get("kvm")
    if not isinstance(kvm, dict) or set(kvm) != {field.name for field in fields(Verdict)}:
        return None
    return Verdict(**kvm)


def _store(path: Path, identity: dict[str, str], verdict: Verdict) -> None:
    body = json.dumps({"format": FORMAT, "host": identity, "kvm": asdict(verdict)}, indent=1) + "\n"
    with contextlib.suppress(OSError):  # no home yet, or not ours: the next one measures again
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".host.json-")
        with os.fdopen(descriptor, "w") as file:
            file.write(body)
            os.fchmod(descriptor, 0o644)  # root's doctor writes what the daemon's uid reads
        os.replace(name, path)


def check_kvm(verdict: Verdict) -> Check:
    if verdict.usable:
        return passed("kvm", verdict.found)
    consequence = "machines run under software emulation: slower, and by QEMU's own words no security boundary"
    if "not for uid" in verdict.found:
        return warned(
            "kvm",
            verdict.found,
            f"{consequence}; join the group that owns the device and log in again",
            "sudo usermod -aG kvm $USER",
        )
    if not DEVICE.exists():
        return warned(
            "kvm",
            verdict.found,
            f"{consequence}; on bare metal switch virtualisation on in the firmware, in a VM ask for nesting",
            "sudo modprobe kvm_amd || sudo modprobe kvm_intel",
        )
    return warned("kvm", verdict.found, f"the device opens, but emulates what it should run; so {consequence}")
