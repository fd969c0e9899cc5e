"""One member's header: POSIX ustar, with a pax header before it for what does not fit. GNU's long names are read.

    name 100 | mode 8 | uid 8 | gid 8 | size 12 | mtime 12 | checksum 8 | type 1 | target 100 | magic 8 | … | prefix 155

Names are bytes; as text they are UTF-8 with surrogates for what is not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from casemate.errors import ArchiveRefused

BLOCK = 512
MAX_EXTRA = 65_536  # of a pax header or a GNU long name
MAX_PATH_BYTES = 4096
MAX_NUMBER = 2**62
_OCTAL_LIMIT = 8**11
_MAGIC = b"ustar\x0000"
_FOLDER, _LINK, _PAX, _PAX_GLOBAL, _GNU_NAME, _GNU_TARGET = b"5", b"2", b"x", b"g", b"L", b"K"
_FILES = (b"0", b"\0", b"7")
_REFUSED = {
    b"1": "a hard link",
    b"3": "a device",
    b"4": "a device",
    b"6": "a named pipe",
    b"S": "a sparse file",
    b"M": "a part of a file",
}
Kind = Literal["file", "dir", "symlink"]


@dataclass(frozen=True, slots=True)
class Member:
    """*size* bytes follow a file; *target* is a symbolic link's."""

    path: str
    kind: Kind
    mode: int
    size: int
    mtime_ns: int
    target: str = ""


@dataclass(frozen=True, slots=True)
class Extra:
    """Not a member: *size* bytes follow that say more about the next one, as *form* has it."""

    form: Literal["pax", "pax-global", "gnu-name", "gnu-target"]
    size: int


_EXTRAS: dict[bytes, Literal["pax", "pax-global", "gnu-name", "gnu-target"]] = {
    _PAX: "pax",
    _PAX_GLOBAL: "pax-global",
    _GNU_NAME: "gnu-name",
    _GNU_TARGET: "gnu-target",
}


def written(member: Member) -> bytes:
    """The block or blocks that stand before the member's bytes."""
    path, target = _bytes(member.path), _bytes(member.target)
    if member.kind == "dir":
        path += b"/"
    records = []
    if len(path) > 100:
        records.append((b"path", path))
    if len(target) > 100:
        records.append((b"linkpath", target))
    if member.size >= _OCTAL_LIMIT:
        records.append((b"size", b"%d" % member.size))
    kind = {"file": _FILES[0], "dir": _FOLDER, "symlink": _LINK}[member.kind]
    size = member.size if member.size < _OCTAL_LIMIT else 0
    seconds = min(max(member.mtime_ns // 10**9, 0), _OCTAL_LIMIT - 1)
    head = _block(path[:100], member.mode & 0o7777, size, seconds, kind, target[:100])
    if not records:
        return head
    body = b"".join(_record(name, value) for name, value in records)
    padding = bytes(-len(body) % BLOCK)
    return _block(b"pax", 0o644, len(body), 0, _PAX, b"") + body + padding + head


def read(block: bytes) -> Member | Extra | None:
    """None for a block of zeros, the end. Raises ArchiveRefused."""
    if not any(block):
        return None
    known = block[148:156]
    if _number(known) != sum(block) - sum(known) + 8 * 0x20:
        raise ArchiveRefused("not a tar archive: a header's checksum is wrong")
    kind, size = block[156:157], _number(block[124:136])
    if kind in _EXTRAS:
        if size > MAX_EXTRA:
            raise ArchiveRefused(f"an extended header of {size} bytes", hint=f"at most {MAX_EXTRA}")
        return Extra(_EXTRAS[kind], size)
    path = _field(block[0:100])
    if block[257:262] == b"ustar" and block[262:263] == b"\0" and (prefix := _field(block[345:500])):
        path = prefix + b"/" + path
    name = path.decode("utf-8", "surrogateescape")
    if kind not in (*_FILES, _FOLDER, _LINK):
        what = _REFUSED.get(kind, f"a member of an unknown type {kind!r}")
        raise ArchiveRefused(f"{name[:200]!r} is {what}", hint="files, folders and symbolic links can be copied")
    form: Kind = "dir" if kind == _FOLDER or path.endswith(b"/") else "symlink" if kind == _LINK else "file"
    return Member(
        name,
        form,
        _number(block[100:108]) & 0o7777,
        size if form == "file" else 0,
        _number(block[136:148]) * 10**9,
        _field(block[157:257]).decode("utf-8", "surrogateescape"),
    )


def pax_records(body: bytes) -> dict[str, bytes]:
    """``length name=value\\n``, each. Raises ArchiveRefused."""
    found: dict[str, bytes] = {}
    while body:
        digits, space, _ = body[:20].partition(b" ")
        if not space or not digits.isdigit() or not len(digits) + 3 <= int(digits) <= len(body):
            raise ArchiveRefused("a pax header that cannot be read")
        name, equals, value = body[len(digits) + 1 : int(digits) - 1].partition(b"=")
        if not equals or body[int(digits) - 1 : int(digits)] != b"\n":
            raise ArchiveRefused("a pax header that cannot be read")
        found[name.decode("utf-8", "replace")] = value
        body = body[int(digits) :]
    return found


def _block(name: bytes, mode: int, size: int, mtime: int, kind: bytes, target: bytes) -> bytes:
    fields = (
        name.ljust(100, b"\0"),
        b"%07o\0" % mode,
        b"%07o\0" % 0,
        b"%07o\0" % 0,
        b"%011o\0" % size,
        b"%011o\0" % mtime,
        b" " * 8,
        kind,
        target.ljust(100, b"\0"),
        _MAGIC,
    )
    block = b"".join(fields).ljust(BLOCK, b"\0")
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def _record(name: bytes, value: bytes) -> bytes:
    rest = b" " + name + b"=" + value + b"\n"
    length = len(rest) + 1
    while length != len(rest) + len(str(length)):
        length = len(rest) + len(str(length))
    return str(length).encode() + rest


def _number(field: bytes) -> int:
    """Octal, or GNU's base 256 for what is larger. Raises ArchiveRefused."""
    if field[0] == 0x80:
        found = int.from_bytes(field[1:], "big")
    else:
        digits = field.strip(b" \0")
        try:
            found = int(digits, 8) if digits else 0
        except ValueError as error:
            raise ArchiveRefused("not a tar archive: a number that is none") from error
    if not 0 <= found <= MAX_NUMBER:
        raise ArchiveRefused("a number in a tar header is out of bounds")
    return found


def _field(field: bytes) -> bytes:
    return field.partition(b"\0")[0]


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
