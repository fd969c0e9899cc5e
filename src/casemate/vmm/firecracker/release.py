"""A release of Firecracker: fetched, unpacked, asked for its version. Nothing in one is believed before it is checked.

The archive's digest is that which the release publishes beside it (``firecracker-v….tgz.sha256.txt``).
"""

from __future__ import annotations

import hashlib
import platform
import re
import subprocess
import threading
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import IO, BinaryIO
from urllib.parse import urlsplit

from casemate.archive import Member, Reader
from casemate.errors import ArchiveRefused, HostError, InvalidSpec, NotSupported, ToolFailed, ToolMissing
from casemate.vmm.firecracker.versions import PINNED, Version, parse_version

NAMES = ("firecracker", "jailer")
PROCESSOR = "x86_64"
FETCH_S = 600.0
SILENT_S = 30.0
TELL_EVERY_S = 2.0
CHUNK_BYTES = 1 << 16
MAX_ARCHIVE_BYTES = 64 << 20  # 1.15.1 has 12 MiB
MAX_UNPACKED_BYTES = 1 << 30  # with the debugging symbols
MAX_PROGRAM_BYTES = 64 << 20
MAX_SAID_BYTES = 4096
VERSION_S = 10.0
GZIP, ZIP, ELF = b"\x1f\x8b", b"PK\x03\x04", b"\x7fELF"
ELF_X86_64 = bytes([2, 1, 1])  # 64 bits, little-endian, version 1
MACHINE_X86_64 = (62).to_bytes(2, "little")
HINT = "give a release's archive (firecracker-v….tgz), or a folder with firecracker and jailer"
_PROGRAM = re.compile(rf"({'|'.join(NAMES)})(?:-v\d+\.\d+\.\d+-{PROCESSOR})?")


@dataclass(frozen=True, slots=True)
class Release:
    version: Version
    url: str
    sha256: str


RELEASE = Release(
    PINNED,
    f"https://github.com/firecracker-microvm/firecracker/releases/download/v{PINNED}/firecracker-v{PINNED}-{PROCESSOR}.tgz",
    "d4a32ab2322d887ca1bc4a4e7afa9cc35393e6362dfc2b3becb389d362e4275a",
)


def check_processor() -> None:
    """Raises NotSupported."""
    if platform.machine() != PROCESSOR:
        raise NotSupported(f"Casemate runs Firecracker on {PROCESSOR} only, this is {platform.machine()}")


# ------------------------------------------------------------------------------------------------- fetching


def fetch(release: Release, into: Path, on_line: Callable[[str], None]) -> None:
    """Its archive as the new file *into*. Blocks, at most FETCH_S. Raises HostError, also for a wrong digest."""
    import httpx  # late: 0.1 s that everybody else saves

    host = urlsplit(release.url).hostname
    elsewhere = f"fetch {release.url} elsewhere, then: casemate vmm install firecracker --from FILE"
    on_line(f"fetching Firecracker {release.version} from {host}")
    try:
        found = _fetch(release.url, into, on_line)
    except (httpx.HTTPError, httpx.InvalidURL, _TooMuch) as error:
        why = str(error) or type(error).__name__
        raise HostError(f"Firecracker {release.version} was not fetched from {host}: {why}", hint=elsewhere) from error
    if found != release.sha256:
        raise HostError(
            f"what {host} sent is not Firecracker {release.version}: its sha256 is {found}, not {release.sha256}",
            hint=elsewhere,
            evidence={"url": release.url, "sha256": found},
        )
    on_line("its SHA-256 is the published one")


class _TooMuch(Exception):
    """More bytes than a release has, or more time."""


def _fetch(url: str, into: Path, on_line: Callable[[str], None]) -> str:
    """The digest of what came."""
    import httpx

    begun = said = time.monotonic()
    sha, size = hashlib.sha256(), 0
    with (
        httpx.stream("GET", url, follow_redirects=True, timeout=SILENT_S) as response,
        into.open("xb") as file,
    ):
        response.raise_for_status()
        total = response.headers.get("Content-Length", "")
        of = f" of {int(total) >> 20}" if total.isdigit() and len(total) < 12 else ""
        for piece in response.iter_raw(CHUNK_BYTES):
            size += len(piece)
            now = time.monotonic()
            if size > MAX_ARCHIVE_BYTES:
                raise _TooMuch(f"it is longer than {MAX_ARCHIVE_BYTES >> 20} MiB")
            if now - begun > FETCH_S:
                raise _TooMuch(f"it was not done in {FETCH_S:g} s")
            if now - said > TELL_EVERY_S:
                said = now
                on_line(f"fetched {size >> 20}{of} MiB")
            sha.update(piece)
            file.write(piece)
    return sha.hexdigest()


# ------------------------------------------------------------------------------------------------- unpacking


def unpack(source: Path, into: Path) -> None:
    """Both programs of *source* as files of the folder *into*. Blocks. Raises InvalidSpec for anything else."""
    if source.is_dir():
        found = _of_folder(source)
    else:
        try:
            with source.open("rb") as file:
                magic = file.read(len(ZIP))
        except FileNotFoundError:
            raise InvalidSpec(f"there is no {source}", hint=HINT) from None
        if magic.startswith(GZIP):
            found = _of_tgz(source)
        elif magic == ZIP:
            found = _of_wheel(source)
        else:
            raise InvalidSpec(f"{source} is no archive", hint=HINT)
    seen = set()
    try:
        for name, pieces in found:
            if name in seen:
                raise InvalidSpec(f"{source} has more than one {name}", hint=HINT)
            seen.add(name)
            _write(into / name, name, pieces)
    except (ArchiveRefused, zlib.error, zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        raise InvalidSpec(f"{source} cannot be unpacked: {str(error)[:200]}", hint=HINT) from error
    if missing := [name for name in NAMES if name not in seen]:
        raise InvalidSpec(f"{source} has no {' and no '.join(missing)}", hint=HINT)


Found = Iterator[tuple[str, Iterator[bytes]]]  # each program and its bytes, to be taken before the next is asked for


def _of_folder(source: Path) -> Found:
    for path in sorted(source.iterdir()):
        if (name := _program(path.name)) and path.is_file():
            with path.open("rb") as file:
                yield name, _pieces(file)


def _of_wheel(source: Path) -> Found:
    with zipfile.ZipFile(source) as archive:
        for info in archive.infolist():
            if not info.is_dir() and (name := _program(info.filename)):
                with archive.open(info) as file:
                    yield name, _pieces(file)


def _of_tgz(source: Path) -> Found:
    number = 0

    def number_of(event: Member | bytes) -> int:
        nonlocal number
        number += isinstance(event, Member)
        return number

    with source.open("rb") as file:
        for _, group in groupby(_events(file), number_of):  # what is not taken of one it lets fall
            member = next(group)
            assert isinstance(member, Member)
            if member.kind == "file" and (name := _program(member.path)):
                yield name, (piece for piece in group if isinstance(piece, bytes))


def _events(file: BinaryIO) -> Iterator[Member | bytes]:
    reader, gzip = Reader(MAX_UNPACKED_BYTES), zlib.decompressobj(wbits=31)
    while not reader.ended:
        data = gzip.unconsumed_tail or file.read(CHUNK_BYTES)
        plain = gzip.decompress(data, CHUNK_BYTES)
        if not plain and (gzip.eof or not data):
            break
        yield from reader.feed(plain)
    reader.finish()


def _program(path: str) -> str | None:
    """Which of the two a member of that name is."""
    found = _PROGRAM.fullmatch(path.rpartition("/")[2])
    return found[1] if found else None


def _pieces(file: IO[bytes]) -> Iterator[bytes]:
    while piece := file.read(CHUNK_BYTES):
        yield piece


def _write(path: Path, name: str, pieces: Iterator[bytes]) -> None:
    size, head = 0, b""
    with path.open("xb") as file:
        for piece in pieces:
            size += len(piece)
            if size > MAX_PROGRAM_BYTES:
                raise InvalidSpec(f"its {name} is longer than {MAX_PROGRAM_BYTES >> 20} MiB", hint=HINT)
            head += piece[: max(0, 20 - len(head))]
            file.write(piece)
    if not head.startswith(ELF + ELF_X86_64) or head[18:20] != MACHINE_X86_64:
        raise InvalidSpec(f"its {name} is no program for {PROCESSOR}", hint=HINT)


# ------------------------------------------------------------------------------------------------- asking


def ask_version(program: Path, name: str) -> Version:
    """What ``--version`` says, run where it sees nothing but itself. Blocks, at most VERSION_S.

    Raises ToolMissing when it says something else than a release of *name*; ToolFailed.
    """
    program.chmod(0o555)
    with program.open("rb") as file:
        said = _said(file.fileno())
    if not said.strip():
        raise ToolFailed(f"{name} told no version within {VERSION_S:g} s", hint=HINT)
    if not said.startswith(f"{name.capitalize()} v"):
        raise ToolMissing(f"what should be {name} says {said.strip().splitlines()[0][:100]!r}", hint=HINT)
    return parse_version(said)


def _said(descriptor: int) -> str:
    """The beginning of what that program prints, or bubblewrap about it: a copy, for root in there has no way to it."""
    argv = ["bwrap", "--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL", "--clearenv"]
    argv += ["--uid", "65534", "--gid", "65534", "--perms", "0555", "--ro-bind-data", str(descriptor), "/program"]
    argv += ["--remount-ro", "/", "--", "/program", "--version"]
    pipe, null = subprocess.PIPE, subprocess.DEVNULL
    try:
        process = subprocess.Popen(argv, stdin=null, stdout=pipe, stderr=subprocess.STDOUT, pass_fds=[descriptor])
    except FileNotFoundError as error:
        raise ToolMissing("bwrap is not installed, in which a VMM is tried", hint="casemate setup") from error
    with process:
        timer = threading.Timer(VERSION_S, process.kill)
        timer.start()
        try:
            assert process.stdout is not None
            return process.stdout.read(MAX_SAID_BYTES).decode("utf-8", "replace")
        finally:
            timer.cancel()
            process.kill()
