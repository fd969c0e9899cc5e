"""A tar of plain files, written and read as a stream. What is read is hostile: no name in it is ever used as a path,
every length is checked before it is believed, and only zeros may come after the last file.
"""

from __future__ import annotations

import hashlib
import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from casemate.errors import HostFull, InvalidSpec

BLOCK = tarfile.BLOCKSIZE
END = bytes(2 * BLOCK)
CHUNK_BYTES = 1 << 20
MAX_TRAILER_BYTES = 1 << 20  # zeros: tar pads to its record size, 10 KiB, and some to more
SPARE_BYTES = 64 << 20


# ------------------------------------------------------------------------------------------------- writing


def header(name: str, size: int) -> bytes:
    member = tarfile.TarInfo(name)
    member.size, member.mode = size, 0o444
    return member.tobuf(tarfile.GNU_FORMAT)  # USTAR cannot say 8 GiB


def padding(size: int) -> bytes:
    """What follows a file of that size."""
    return bytes(-size % BLOCK)


def length_of(size: int) -> int:
    """How many bytes a file of that size takes in all."""
    return BLOCK + size + len(padding(size))


def pieces_of(file: BinaryIO, size: int, what: str) -> Iterator[bytes]:
    """The next *size* bytes of *file*. Raises InvalidSpec about *what* where there are less."""
    while size:
        piece = file.read(min(CHUNK_BYTES, size))
        if not piece:
            raise InvalidSpec(f"{what} is shorter than it was", hint="casemate image verify")
        size -= len(piece)
        yield piece


# ------------------------------------------------------------------------------------------------- reading


class TarReader:
    """One member after another of *source*, which may be a pipe. *odd* makes the error of what is not as it should be.

    Every method blocks and raises that; those that write also OSError.
    """

    def __init__(self, source: BinaryIO, odd: Callable[[str], InvalidSpec]) -> None:
        self._source = source
        self._odd = odd

    def member(self) -> tuple[str, int]:
        """The name and the size of the plain file that comes next."""
        try:
            found = tarfile.TarInfo.frombuf(self.exactly(BLOCK), "utf-8", "strict")
        except (tarfile.HeaderError, ValueError) as error:
            raise self._odd(f"a header of its tar is not one ({error})") from error
        if found.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
            raise self._odd(f"{found.name[:80]!r} is not a plain file")
        return found.name, found.size

    def expect(self, name: str, size: int, what: str) -> None:
        """The member that comes next is just this one."""
        found = self.member()
        if found != (name, size):
            raise self._odd(f"{found[0][:80]!r} stands where its {what} belongs")

    def first(self, name: str, max_size: int) -> bytes:
        """All of the first member, which has that name and is not too long."""
        found, size = self.member()
        if found != name or not 0 < size <= max_size:
            raise self._odd(f"it begins with {found[:80]!r}")
        data = self.exactly(size)
        self.skip_padding(size)
        return data

    def exactly(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            piece = self._source.read(size - len(data))
            if not piece:
                raise self._odd("it stops before its end")
            data += piece
        return bytes(data)

    def pieces(self, size: int) -> Iterator[bytes]:
        """The next *size* bytes."""
        while size:
            piece = self.exactly(min(size, CHUNK_BYTES))
            size -= len(piece)
            yield piece

    def copy(self, path: Path, size: int) -> str:
        """The next *size* bytes as the new file *path*; their sha256."""
        sha = hashlib.sha256()
        with path.open("xb") as file:
            for piece in self.pieces(size):
                sha.update(piece)
                file.write(piece)
        return sha.hexdigest()

    def skip_padding(self, size: int) -> None:
        self.exactly(-size % BLOCK)

    def check_end(self) -> None:
        """Two blocks of zeros, and nothing but a few zeros more."""
        rest = self.exactly(2 * BLOCK)
        while not any(rest) and len(rest) <= MAX_TRAILER_BYTES:
            piece = self._source.read(CHUNK_BYTES)
            if not piece:
                return
            rest += piece
        raise self._odd("there is more after its last file")


def check_space(folder: Path, size_bytes: int) -> None:
    """Better said before a gigabyte is sent than after. Raises HostFull."""
    free = os.statvfs(folder)
    free_bytes = free.f_bavail * free.f_frsize
    if free_bytes < size_bytes + SPARE_BYTES:
        raise HostFull(
            f"the image takes {size_bytes >> 20} MiB, and {free_bytes >> 20} MiB are free",
            hint="casemate image prune, or more disk space",
        )
