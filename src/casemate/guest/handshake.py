"""The hand-shake's act in the guest: entropy, clock and identity, then the proof. No user code runs before it.

Files written here live on tmpfs, bound over their places when the guest booted (mounts.py): a write into the
image's overlay would cost a clone milliseconds.
"""

from __future__ import annotations

import binascii
import fcntl
import hashlib
import hmac
import os
import socket
import struct
import time
from dataclasses import dataclass
from typing import Any

from casemate.errors import ProtocolViolation
from casemate.guest.conversation import environment, optional_text, text

GENERATION = 1
STATE_FOLDER = "/run/casemate/identity"
RNDADDENTROPY = 0x40085203  # random(4)
RNDRESEEDCRNG = 0x5207
_ENTROPY_BYTES = range(32, 513)
_HOSTS = b"127.0.0.1 localhost\n::1 localhost\n"
_READ_AT_MOST = 1 << 20


@dataclass(frozen=True, slots=True)
class Hello:
    """A checked HELLO."""

    sandbox_id: str
    hostname: str
    machine_id: str
    entropy: bytes
    nonce: str
    wall_clock_ns: int
    env: dict[str, str]
    user: str | None
    cwd: str | None
    fresh: bool
    copy: bool


def parse(body: dict[str, Any]) -> Hello:
    """Raises ProtocolViolation, InvalidSpec."""
    try:
        entropy = binascii.a2b_base64(text(body, "entropy"))
    except ValueError as error:
        raise ProtocolViolation("HELLO's entropy is not base64") from error
    wall_clock_ns = body.get("wall_clock_ns")
    if body.get("generation") != GENERATION or len(entropy) not in _ENTROPY_BYTES or type(wall_clock_ns) is not int:
        raise ProtocolViolation("HELLO of another generation, or without entropy or clock")
    fresh, copy = body.get("fresh") is not False, body.get("copy") is True
    if copy and not fresh:
        raise ProtocolViolation("HELLO to a copy that is to stay what it is")
    return Hello(
        sandbox_id=text(body, "sandbox_id"),
        hostname=text(body, "hostname"),
        machine_id=text(body, "machine_id"),
        entropy=entropy,
        nonce=text(body, "nonce"),
        wall_clock_ns=wall_clock_ns,
        env=environment(body),
        user=optional_text(body, "user"),
        cwd=optional_text(body, "cwd"),
        fresh=fresh,
        copy=copy,
    )


class Machine:
    """What the hand-shake changes in this guest."""

    def add_entropy(self, entropy: bytes) -> None:
        """Credit *entropy* to the kernel's pool and make every generator draw on it at once."""
        fd = os.open("/dev/urandom", os.O_WRONLY | os.O_CLOEXEC)
        try:
            fcntl.ioctl(fd, RNDADDENTROPY, struct.pack("ii", 8 * len(entropy), len(entropy)) + entropy)
            fcntl.ioctl(fd, RNDRESEEDCRNG)
        finally:
            os.close(fd)

    def set_clock(self, wall_clock_ns: int) -> None:
        time.clock_settime_ns(time.CLOCK_REALTIME, wall_clock_ns)

    def set_identity(self, hello: Hello, boot_id: str) -> None:
        before, was = _read("hosts") if hello.copy else _HOSTS, socket.gethostname()
        socket.sethostname(hello.hostname)
        _write("machine-id", f"{hello.machine_id}\n".encode())
        _write("boot_id", f"{boot_id}\n".encode())
        _write("hostname", f"{hello.hostname}\n".encode())
        _write("hosts", hosts(hello.hostname, before, was))


class Handshake:
    """Applies HELLOs to *machine* and words the answers. *applied* once the first one was."""

    def __init__(self, machine: Machine, agent: str) -> None:
        self._machine, self._agent = machine, agent
        self._boot_id = ""
        self.applied = False

    def apply(self, hello: Hello) -> dict[str, Any]:
        """The READY body. Raises OSError when the kernel refuses: then the guest must not be used."""
        machine = self._machine
        machine.add_entropy(hello.entropy)
        machine.set_clock(hello.wall_clock_ns)
        if hello.fresh or not self.applied:
            self._boot_id = _new_uuid()
            machine.set_identity(hello, self._boot_id)
        self.applied = True
        wall_clock_ns = time.time_ns()
        told = (
            f"casemate-handshake-1|{hello.nonce}|{hello.sandbox_id}|{hello.hostname}"
            f"|{hello.machine_id}|{self._boot_id}|{wall_clock_ns}"
        )
        return {
            "generation": GENERATION,
            "agent": self._agent,
            "boot_id": self._boot_id,
            "wall_clock_ns": wall_clock_ns,
            "proof": hmac.new(hello.entropy, told.encode(), hashlib.sha256).hexdigest(),
            "copy": hello.copy,
        }


def hosts(hostname: str, before: bytes = _HOSTS, was: str = "") -> bytes:
    """/etc/hosts: what is in it but for the line that says who it *was*, and who it is now."""
    own = b"127.0.1.1 %s"
    kept = [line for line in before.splitlines() if line != own % os.fsencode(was)]
    return b"".join(line + b"\n" for line in (*kept, own % hostname.encode()))


def _new_uuid() -> str:
    """A random UUID (version 4): drawn after the reseed, so no two clones share one."""
    number = int.from_bytes(os.urandom(16), "big") & ~(0xF << 76 | 0x3 << 62) | 4 << 76 | 2 << 62
    digits = f"{number:032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def _read(name: str) -> bytes:
    """What a user may have written; nothing where there is no such file any more."""
    try:
        with open(f"{STATE_FOLDER}/{name}", "rb") as file:
            return file.read(_READ_AT_MOST)
    except FileNotFoundError:
        return b""


def _write(name: str, content: bytes) -> None:
    fd = os.open(f"{STATE_FOLDER}/{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        os.write(fd, content)
    finally:
        os.close(fd)
