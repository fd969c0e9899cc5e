"""The programs of the distribution that Casemate starts, and the Debian packages they come in."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from casemate.posture.check import Check, failed, passed, skipped, warned

SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"  # a user's PATH may lack sbin
VERSION_TIMEOUT_S = 10.0
QEMU_AT_LEAST = (8, 2)
QEMU = "qemu-system-x86_64"
SETUP = "casemate setup"


@dataclass(frozen=True, slots=True)
class Program:
    """*executable*: a name on the path, or an absolute file. Checked under the name of its package."""

    executable: str
    package: str
    purpose: str
    users_only: bool = False


PROGRAMS = (
    Program("bwrap", "bubblewrap", "the jail around every machine"),
    Program("mmdebstrap", "mmdebstrap", "makes an image's root disk"),
    Program("mkfs.erofs", "erofs-utils", "freezes root and agent disks"),
    Program("mkfs.ext4", "e2fsprogs", "makes the writable disk"),
    Program("zstd", "zstd", "unpacks newer kernels"),
    Program("lz4", "lz4", "unpacks older kernels"),
    Program("depmod", "kmod", "orders the guest's kernel modules"),
    Program("apt-get", "apt", "fetches and authenticates packages"),
    Program("dpkg-deb", "dpkg", "unpacks packages"),
    Program(
        "/usr/share/keyrings/debian-archive-keyring.gpg",
        "debian-archive-keyring",
        "authenticates Debian's archive",
    ),
    Program("newuidmap", "uidmap", "makes images without root", users_only=True),
)
QEMU_PACKAGE = "qemu-system-x86"


def find_program(executable: str) -> str | None:
    if executable.startswith("/"):
        return executable if Path(executable).exists() else None
    return shutil.which(executable, path=SYSTEM_PATH)


def check_program(program: Program) -> Check:
    if program.users_only and os.geteuid() == 0:
        return skipped(program.package, "root does not need it")
    if found := find_program(program.executable):
        return passed(program.package, found)
    return failed(
        program.package,
        f"no {program.executable}",
        f"{program.purpose}; package {program.package} has it",
        SETUP,
    )


def qemu_version() -> str | None:
    """As ``10.0.2``, or None where there is no QEMU that starts."""
    path = find_program(QEMU)
    if path is None:
        return None
    try:
        text = subprocess.run(
            [path, "--version"], capture_output=True, text=True, timeout=VERSION_TIMEOUT_S, check=False
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.search(r"version (\d+(?:\.\d+)+)", text)
    return match[1] if match else None


def check_qemu(version: str | None) -> Check:
    wanted = ".".join(map(str, QEMU_AT_LEAST))
    if version is None:
        path = find_program(QEMU)
        found = f"{path} tells no version" if path else f"no {QEMU}"
        return failed("qemu", found, f"the VMM; {wanted} or newer, package {QEMU_PACKAGE}", SETUP)
    if tuple(int(part) for part in version.split(".")[:2]) < QEMU_AT_LEAST:
        return failed("qemu", version, f"too old to restore a snapshot from a file; {wanted} or newer", SETUP)
    return passed("qemu", version)


def check_subordinate_ids() -> Check:
    """Who builds an image without root needs a range of ids to be root over."""
    name = "subordinate-ids"
    if os.geteuid() == 0:
        return skipped(name, "root does not need them")
    import pwd

    user = pwd.getpwuid(os.geteuid()).pw_name
    missing = [path for path in ("/etc/subuid", "/etc/subgid") if not _has_range(path, user, str(os.geteuid()))]
    if not missing:
        return passed(name, f"{user} has a range in /etc/subuid and /etc/subgid")
    return warned(
        name,
        f"{user} has no range in {' and '.join(missing)}",
        "an image cannot be built by this user; images that are built can be used",
        f"sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {user}",
    )


def _has_range(path: str, *names: str) -> bool:
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return False
    return any(line.split(":")[0] in names and line.count(":") == 2 for line in lines)


def missing_packages(checks: list[Check]) -> list[str]:
    """The Debian packages that would turn failed checks into passed ones."""
    failing = {check.name for check in checks if check.status == "fail"}
    names = [QEMU_PACKAGE] if "qemu" in failing else []
    return names + [program.package for program in PROGRAMS if program.package in failing]
