"""tar without I/O: bytes in pieces of any size go in, members and their bytes come out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from casemate.archive import headers
from casemate.archive.headers import BLOCK, MAX_NUMBER, Extra, Member
from casemate.errors import ArchiveRefused

MAX_MEMBERS = 1_000_000


class Reader:
    """Holds one block, or one extended header. *limit_bytes* bounds what all files together may have."""

    def __init__(self, limit_bytes: int = MAX_NUMBER) -> None:
        self._limit_bytes = limit_bytes
        self._members = 0
        self._block = bytearray()
        self._extra: Extra | None = None
        self._body = bytearray()  # of the extra
        self._path: str | None = None
        self._target: str | None = None
        self._size: int | None = None
        self._left = self._padding = 0
        self.ended = False  # the block of zeros has come; what follows it means nothing

    def feed(self, data: bytes | memoryview) -> Iterator[Member | bytes]:
        """Each member, then its bytes until there are as many as it said. Raises ArchiveRefused."""
        view = memoryview(data)
        while view and not self.ended:
            if self._left:
                piece, view = view[: self._left], view[self._left :]
                self._left -= len(piece)
                if self._extra is None:
                    yield bytes(piece)
                else:
                    self._body += piece
                    if not self._left:
                        self._read_extra(self._extra)
            elif self._padding:
                skipped = min(self._padding, len(view))
                self._padding -= skipped
                view = view[skipped:]
            else:
                missing = BLOCK - len(self._block)
                self._block += view[:missing]
                view = view[missing:]
                if len(self._block) == BLOCK:
                    block = bytes(self._block)
                    self._block.clear()
                    if (member := self._read_header(block)) is not None:
                        yield member

    def finish(self) -> None:
        """There is no more. Raises ArchiveRefused in the middle of something."""
        if not self.ended:
            raise ArchiveRefused("the archive ends before its end", hint="it was cut off; copy again")

    def _read_header(self, block: bytes) -> Member | None:
        found = headers.read(block)
        if found is None:
            self.ended = True
            return None
        if isinstance(found, Extra):
            self._body.clear()
            self._extra = found if found.size else None
            self._begin(found.size)
            return None
        self._members += 1
        if self._members > MAX_MEMBERS:
            raise ArchiveRefused(f"the archive has over {MAX_MEMBERS} members")
        size = found.size if self._size is None or found.kind != "file" else self._size
        path = self._path if self._path is not None else found.path
        member = replace(found, path=path, target=self._target if self._target is not None else found.target, size=size)
        self._path = self._target = self._size = None
        self._limit_bytes -= size
        if self._limit_bytes < 0:
            raise ArchiveRefused(
                f"the archive's files are larger than allowed, at {path[:200]!r} of {size} bytes",
                hint="a sparse file takes less room there than here; say how much may come",
            )
        self._begin(size)
        return member

    def _begin(self, size: int) -> None:
        self._left, self._padding = size, -size % BLOCK

    def _read_extra(self, extra: Extra) -> None:
        body = bytes(self._body)
        self._body.clear()
        self._extra = None
        match extra.form:
            case "gnu-name":
                self._path = _text(body)
            case "gnu-target":
                self._target = _text(body)
            case "pax":
                self._note(headers.pax_records(body))
            case "pax-global":
                headers.pax_records(body)  # comments of who made it; nothing that would be about every member

    def _note(self, records: dict[str, bytes]) -> None:
        if any(name.startswith("GNU.sparse") for name in records):
            raise ArchiveRefused("the archive has a sparse file", hint="make it without --sparse")
        if (path := records.get("path")) is not None:
            self._path = _text(path)
        if (target := records.get("linkpath")) is not None:
            self._target = _text(target)
        if (size := records.get("size")) is not None:
            if not size.isdigit() or len(size) > 18:
                raise ArchiveRefused("a size in a pax header is no number")
            self._size = int(size)


def _text(name: bytes) -> str:
    return name.rstrip(b"\0").decode("utf-8", "surrogateescape")
