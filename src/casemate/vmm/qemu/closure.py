"""All a jailed VMM sees of the host: its binary, its libraries, its firmware, in a folder of their own.

``vmm/<sha256>/usr/…`` is written here once per QEMU build (temporary name, rename), read by every jail,
and kept as long as a snapshot was made with it. ``vmm/current.json`` remembers which build the installed
binary is, by inode and times, so that a daemon's start neither hashes nor runs it again.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from casemate.errors import HostError, ToolFailed, ToolMissing

NAME = "qemu-system-x86_64"
BINARY = f"/usr/bin/{NAME}"  # in the jail
MIN_VERSION = (8, 2)  # `file:` migration; see FIELD notes in docs/vmm-contract.md
FIRMWARE = (  # what a microvm with a direct (PVH) boot loads
    "/usr/share/seabios/bios-microvm.bin",
    "/usr/share/qemu/bios-microvm.bin",
    "/usr/share/qemu/pvh.bin",
    "/usr/share/qemu/linuxboot_dma.bin",
    "/usr/share/qemu/kvmvapic.bin",
)
TOOL_TIMEOUT_S = 20
INSTALL_HINT = "casemate setup --yes installs it (on Debian 12 from bookworm-backports)"


@dataclass(frozen=True, slots=True)
class Closure:
    """*usr* becomes /usr in the jail."""

    usr: Path
    version: str
    sha256: str  # of the binary


def find_closure(folder: Path) -> Closure:
    """The closure of the installed QEMU below *folder*, made when it is new. Blocks. Raises ToolMissing, ToolFailed."""
    found = shutil.which(NAME)
    if found is None:
        raise ToolMissing(f"{NAME} is not installed", hint=INSTALL_HINT)
    binary = Path(found).resolve()
    stat = binary.stat()
    key = f"{binary} {stat.st_ino} {stat.st_size} {stat.st_mtime_ns}"
    known = _read_current(folder)
    if known is not None and known[0] == key and known[1].usr.is_dir():
        return known[1]
    closure = _make(folder, binary)
    temporary = folder / f".{secrets.token_hex(6)}"
    temporary.write_text(json.dumps({"key": key, "version": closure.version, "sha256": closure.sha256}))
    temporary.rename(folder / "current.json")
    return closure


def find_kept(folder: Path, sha256: str) -> Path:
    """The /usr of the QEMU build with that digest, installed or not. Raises ToolMissing when it is not kept."""
    usr = folder / sha256 / "usr"
    if not re.fullmatch(r"[0-9a-f]{64}", sha256) or not (usr / "bin" / NAME).is_file():
        raise ToolMissing(
            f"the QEMU build {sha256[:16]} that this machine was saved with is not kept below {folder}",
            hint=f"put it back as {folder}/{sha256[:64]}, or start from the disk with casemate resume --cold",
        )
    return usr


def _read_current(folder: Path) -> tuple[str, Closure] | None:
    try:
        body = json.loads((folder / "current.json").read_text())
        usr = folder / body["sha256"] / "usr"  # not a path that was noted: the home may be a copy
        return body["key"], Closure(usr, body["version"], body["sha256"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _make(folder: Path, binary: Path) -> Closure:
    version = _version(binary)
    files = [(binary, Path(f"usr/bin/{NAME}")), *_libraries(binary)]
    files += [(Path(path), Path(path[1:])) for path in FIRMWARE if Path(path).is_file()]
    digest = hashlib.sha256(binary.read_bytes()).hexdigest()
    target = folder / digest
    if not target.is_dir():
        temporary = folder / f".new-{secrets.token_hex(6)}"
        try:
            _copy(files, temporary)
            temporary.rename(target)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST) and target.is_dir():
                return Closure(target / "usr", version, digest)  # another task was faster; it copied the same build
            raise HostError(f"the VMM could not be copied to {folder}: {error}", hint="free some disk space") from error
    return Closure(target / "usr", version, digest)


def _copy(files: list[tuple[Path, Path]], root: Path) -> None:
    for name in ("usr/bin", "usr/lib", "usr/lib64"):
        (root / name).mkdir(parents=True)
    for source, place in files:
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, root / place)
        (root / place).chmod(0o555)
    for parent, folders, _ in os.walk(root):
        for name in folders:
            os.chmod(os.path.join(parent, name), 0o755)
    root.chmod(0o755)


def _libraries(binary: Path) -> list[tuple[Path, Path]]:
    """(file, place below the root) of each library and of the loader, as ldd finds them; /lib is /usr/lib."""
    found = []
    for path in re.findall(r"(/\S+) \(0x", _run(["ldd", str(binary)])):
        place = path[1:] if path.startswith("/usr/") else f"usr{path}"
        found.append((Path(path), Path(place)))
    if not found:
        raise ToolFailed(f"ldd names no library of {binary}")
    return found


def _version(binary: Path) -> str:
    text = _run([str(binary), "--version"]).splitlines()[0]
    match = re.search(r"version (\d+)\.(\d+)", text)
    if match is None or (int(match[1]), int(match[2])) < MIN_VERSION:
        raise ToolMissing(f"{text.strip()} is too old: Casemate needs 8.2 or later", hint=INSTALL_HINT)
    return text.strip()


def _run(argv: list[str]) -> str:
    try:
        return subprocess.run(argv, check=True, capture_output=True, text=True, timeout=TOOL_TIMEOUT_S).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise ToolFailed(f"{argv[0]} failed: {error}", evidence={"argv": argv}) from error
