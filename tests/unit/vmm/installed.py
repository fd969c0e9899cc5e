"""Builds of Firecracker as an install leaves them, and programs that an install takes for its two."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

CC = shutil.which("gcc") or shutil.which("cc")
BWRAP = shutil.which("bwrap")
needs_tools = pytest.mark.skipif(CC is None or BWRAP is None, reason="no C compiler or no bwrap on this host")

SAYS = """
static long call(long number, long first, const void *second, long third) {
    long answer;
    __asm__ volatile("syscall" : "=a"(answer) : "a"(number), "D"(first), "S"(second), "d"(third)
                     : "rcx", "r11", "memory");
    return answer;
}
void _start(void) {
    static const char said[] = SAID;
    if (SPINS) for (;;) ;
    call(1, 1, said, sizeof said - 1);
    call(60, 0, 0, 0);
}
"""


def make_program(folder: Path, text: str, spins: bool = False) -> bytes:
    """A static one that prints *text*, or does nothing for ever; made once."""
    path = folder / hashlib.sha256(f"{text}{spins}".encode()).hexdigest()
    if not path.exists():
        (source := folder / "says.c").write_text(SAYS)
        argv = [str(CC), "-nostdlib", "-static", "-O1", f"-DSAID={json.dumps(text)}", f"-DSPINS={int(spins)}"]
        subprocess.run([*argv, "-o", str(path), str(source)], check=True)
    return path.read_bytes()


def make_pair(make: Callable[[str], bytes], version: str) -> dict[str, bytes]:
    """As far as anybody asks them."""
    said = {"firecracker": f"Firecracker v{version}\n\nand more\n", "jailer": f"Jailer v{version}\n\n"}
    return {name: make(text) for name, text in said.items()}


def put_build(vmm: Path, version: str, *, installed: bool = True) -> str:
    """Its digest."""
    programs = {name: f"{name} {version}".encode() for name in ("firecracker", "jailer")}
    sha256, jailer_sha256 = (hashlib.sha256(data).hexdigest() for data in programs.values())
    folder = vmm / sha256
    folder.mkdir(parents=True)
    for name, data in programs.items():
        (folder / name).write_bytes(data)
    said = {"format": 1, "vmm": "firecracker", "version": version, "sha256": sha256, "jailer_sha256": jailer_sha256}
    (folder / "build.json").write_text(json.dumps(said))
    if installed:
        (vmm / "firecracker.json").write_text(json.dumps({"sha256": sha256}))
    return sha256
