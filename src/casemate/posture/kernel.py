"""What the kernel lends us: cgroups, namespaces; and what it says about the processor."""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

from casemate.posture.check import Check, failed, passed, read_fact, skipped, warned
from casemate.posture.programs import SYSTEM_PATH, find_program

CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWNET = 0x0002_0000, 0x1000_0000, 0x4000_0000
NOBODY = 65534
PR_SET_DUMPABLE = 4
JAIL_TIMEOUT_S = 10.0
VULNERABILITIES = Path("/sys/devices/system/cpu/vulnerabilities")


def check_architecture() -> Check:
    machine = platform.machine()
    if machine == "x86_64":
        return passed("architecture", machine)
    return failed("architecture", machine, "Casemate runs on x86-64 only")


def check_cgroups(mounts: str | None = None) -> Check:
    """Which cgroup trees are mounted. *mounts* is /proc/self/mounts."""
    lines = (mounts if mounts is not None else read_fact("/proc/self/mounts") or "").splitlines()
    found = {fields[2]: fields[1] for fields in map(str.split, lines) if fields[2] in ("cgroup", "cgroup2")}
    if found.get("cgroup2") and "cgroup" not in found:
        return passed("cgroups", f"v2 on {found['cgroup2']}")
    if "cgroup2" in found:
        return warned(
            "cgroups",
            f"hybrid: limits in v1, v2 on {found['cgroup2']}",
            "works; with v2 alone, memory and CPU of a machine are limited in one place",
            "boot with systemd.unified_cgroup_hierarchy=1",
        )
    if "cgroup" in found:
        return warned("cgroups", "v1 only", "machines cannot be frozen or killed as a group; use v2")
    return warned("cgroups", "none mounted", "machines run without limits of their own; mount cgroup2")


def check_user_namespaces() -> Check:
    """Makes one, as somebody without privilege would, and mounts something in it."""
    error = _in_child(_enter_namespaces)
    if error is None:
        who = "this user" if os.geteuid() else f"uid {NOBODY}"
        return passed("user-namespaces", f"{who} can make one and mount in it")
    return failed("user-namespaces", error, "the jail stands on unprivileged user namespaces", _userns_fix())


def _userns_fix() -> str:
    if read_fact("/proc/sys/kernel/unprivileged_userns_clone") == "0":
        return "sudo sysctl -w kernel.unprivileged_userns_clone=1"
    if read_fact("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == "1":
        return "sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"
    return "sudo sysctl -w user.max_user_namespaces=15000"


def _enter_namespaces() -> str | None:
    libc = ctypes.CDLL(None, use_errno=True)
    uid, gid = os.getuid(), os.getgid()
    libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)  # after a change of uid our own /proc files belong to root
    if libc.unshare(CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWNET):
        return f"unshare: {os.strerror(ctypes.get_errno())}"
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
    Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
    if libc.mount(b"casemate", b"/tmp", b"tmpfs", 0, None):
        return f"mount: {os.strerror(ctypes.get_errno())}"
    return None


def _in_child(attempt: Callable[[], str | None]) -> str | None:
    """What *attempt* returned in a child without privilege; the child leaves nothing behind."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setresgid(NOBODY, NOBODY, NOBODY)
                os.setresuid(NOBODY, NOBODY, NOBODY)
            said = attempt() or ""
        except OSError as error:
            said = f"{error.filename or 'setresuid'}: {error.strerror}"
        os.write(write_end, struct.pack("<H", len(said.encode())) + said.encode()[:1000])
        os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as answer:
        said_bytes = answer.read(1002)
    os.waitpid(child, 0)
    if len(said_bytes) < 2:
        return "the child that tried it died"
    return said_bytes[2:].decode(errors="replace") or None


def check_jail() -> Check:
    """Starts a program in an empty bubblewrap jail, as somebody without privilege."""
    bwrap = find_program("bwrap")
    if bwrap is None:
        return skipped("jail", "no bwrap to try it with")
    argv = [bwrap, "--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL"]
    argv += ["--ro-bind", "/", "/", "/bin/true"]
    as_root = os.geteuid() == 0
    try:
        done = subprocess.run(
            argv,
            capture_output=True,
            text=True,
            timeout=JAIL_TIMEOUT_S,
            check=False,
            env={"PATH": SYSTEM_PATH},
            cwd="/",
            user=NOBODY if as_root else None,
            group=NOBODY if as_root else None,
            extra_groups=[] if as_root else None,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return failed("jail", str(error), "no machine can be started without its jail")
    if done.returncode == 0:
        return passed("jail", "bubblewrap makes an empty one without privilege")
    said = (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1]
    return failed("jail", said, "no machine can be started without its jail", _userns_fix())


def check_smt() -> Check:
    active = read_fact("/sys/devices/system/cpu/smt/active")
    if active is None:
        return skipped("smt", "the kernel does not say")
    if active == "0":
        return passed("smt", "one thread per core")
    return warned(
        "smt",
        "two threads share a core",
        "sandboxes of different owners may learn of each other through the shared core; off where that matters",
        "echo off | sudo tee /sys/devices/system/cpu/smt/control",
    )


def check_ksm() -> Check:
    running = read_fact("/sys/kernel/mm/ksm/run")
    if running is None:
        return skipped("ksm", "not in this kernel")
    if running != "1":
        return passed("ksm", "off")
    return warned(
        "ksm",
        "the kernel merges equal pages",
        "how long a write takes then tells what another sandbox has in memory",
        "echo 2 | sudo tee /sys/kernel/mm/ksm/run",
    )


def check_cpu_vulnerabilities(folder: Path = VULNERABILITIES) -> Check:
    """The kernel's own list; see Linux Documentation/admin-guide/hw-vuln."""
    name = "cpu-vulnerabilities"
    said = {path.name: read_fact(path) or "" for path in sorted(folder.glob("*"))}
    if not said:
        return skipped(name, "the kernel keeps no list")
    open_ones = {what: state for what, state in said.items() if state.lower().startswith("vulnerable")}
    if not open_ones:
        return passed(name, f"{len(said)} known, none open")
    listed = "; ".join(f"{what}: {state}" for what, state in open_ones.items())
    return warned(name, listed, "code in a guest may read memory of its host; update the kernel and the microcode")
