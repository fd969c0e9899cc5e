"""Files in a guest, with the rights of a user of the guest. Paths are relative to that user's home."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Any

import anyio

from casemate import wire
from casemate.errors import AgentSilent, GuestError, InvalidSpec, ProtocolViolation
from casemate.sandbox import parse
from casemate.sandbox.channel import Channel
from casemate.sandbox.link import Link

ANSWER_TIMEOUT_S = 30.0  # a guest may have to write back what it has been given
MAX_ENTRIES = 200_000  # of one folder; more is refused rather than held in memory
MAX_LISTING_BYTES = 64 * 2**20  # of its names and paths on the wire, which a guest may make as long as it likes
MAX_PATH_CHARS = 4096


@dataclass(frozen=True, slots=True)
class Entry:
    """*type* is file, dir, symlink or other; *mode* the permission bits."""

    name: str
    path: str
    type: str
    size: int
    mode: int
    uid: int
    gid: int
    mtime_ns: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class Reader:
    """An open file, or a folder being packed. *size* is what the guest's kernel said of a file; /proc says 0."""

    def __init__(self, channel: Channel) -> None:
        self.size = parse.whole(channel.accepted, "size") if "size" in channel.accepted else None
        self._channel = channel

    async def read(self) -> bytes | None:
        """The next piece, None at the end. Raises GuestError when the guest could not read on."""
        item = await self._channel.receive()
        match item:
            case wire.Data(sub=1):
                return item.data
            case None:
                return None
            case _:
                raise ProtocolViolation("file: a message nobody sends")


@asynccontextmanager
async def open_read(
    link: Link, path: str, *, user: str | None = None, offset: int = 0, length: int | None = None
) -> AsyncIterator[Reader]:
    """The bytes of a file. Raises FileRefused with the guest kernel's errno."""
    params = {"op": "read", "path": checked_path(path), "user": user, "offset": offset, "length": length}
    async with link.open("file", params) as channel:
        channel.finish()
        yield Reader(channel)


async def write(
    link: Link,
    path: str,
    pieces: AsyncIterable[bytes],
    *,
    mode: int | None = None,
    user: str | None = None,
    make_parents: bool = True,
) -> int:
    """Replace the file by *pieces*; the number of bytes written.

    The guest renames a finished file into place: a failed, cancelled or torn write leaves what was there.
    Raises FileRefused with the guest kernel's errno.
    """
    params = {"op": "write", "path": checked_path(path), "mode": mode, "user": user, "make_parents": make_parents}
    async with link.open("file", params) as channel:
        async for piece in pieces:
            await channel.send(piece)
        channel.finish()
        return parse.whole(await answer(channel, "written"), "size")


async def stat(link: Link, path: str, *, user: str | None = None, follow: bool = False) -> Entry:
    """What *path* is; with *follow* what it leads to, where it is a symbolic link."""
    params = {"op": "stat", "path": checked_path(path), "user": user, "follow": follow}
    async with link.open("file", params) as channel:
        channel.finish()
        return _entry(channel.accepted)


async def listed(link: Link, path: str, *, user: str | None = None) -> list[Entry]:
    """The entries of a folder by name."""
    async with link.open("file", {"op": "list", "path": checked_path(path), "user": user}) as channel:
        channel.finish()
        found, size = _entries(channel.accepted), 0
        while item := await _next(channel):
            if not isinstance(item, wire.Message):
                raise ProtocolViolation("file: bytes where entries belong")
            found += _entries(item.body)
            size += item.size
            if len(found) > MAX_ENTRIES or size > MAX_LISTING_BYTES:
                limits = f"{MAX_ENTRIES} entries or {MAX_LISTING_BYTES >> 20} MiB of them"
                raise InvalidSpec(f"{path!r} has over {limits}", hint="list it with an exec")
    return sorted(found, key=lambda entry: entry.name)


async def remove(link: Link, path: str, *, recursive: bool = False, user: str | None = None) -> None:
    await _act(link, {"op": "remove", "path": checked_path(path), "recursive": recursive, "user": user})


async def make_folder(link: Link, path: str, *, user: str | None = None) -> None:
    await _act(link, {"op": "mkdir", "path": checked_path(path), "user": user})


async def move(link: Link, path: str, to: str, *, user: str | None = None) -> None:
    await _act(link, {"op": "move", "path": checked_path(path), "to": checked_path(to), "user": user})


async def _act(link: Link, params: Mapping[str, Any]) -> None:
    async with link.open("file", params, timeout_s=ANSWER_TIMEOUT_S) as channel:
        channel.finish()


async def _next(channel: Channel) -> wire.Data | wire.Message | None:
    try:
        with anyio.fail_after(ANSWER_TIMEOUT_S):
            return await channel.receive()
    except TimeoutError as error:
        raise AgentSilent(f"no answer about a file within {ANSWER_TIMEOUT_S:g} s") from error


async def answer(channel: Channel, event: str) -> Mapping[str, Any]:
    item = await _next(channel)
    if item is None:
        raise GuestError("the agent let go of a file before it was done")
    if not isinstance(item, wire.Message) or item.body.get("event") != event:
        raise ProtocolViolation("file: a message nobody sends")
    return item.body


def checked_path(path: str) -> str:
    """Raises InvalidSpec."""
    if not path or "\0" in path or len(path) > MAX_PATH_CHARS:
        raise InvalidSpec("path is empty, longer than 4096 characters or holds a NUL")
    return path


def _entries(body: Mapping[str, Any]) -> list[Entry]:
    return [_entry(item) for item in parse.objects(body, "entries")]


def _entry(body: Mapping[str, Any]) -> Entry:
    return Entry(
        name=parse.text(body, "name"),
        path=parse.text(body, "path"),
        type=parse.text(body, "type", 16),
        size=parse.whole(body, "size"),
        mode=parse.whole(body, "mode", high=0o7777),
        uid=parse.whole(body, "uid"),
        gid=parse.whole(body, "gid"),
        mtime_ns=parse.whole(body, "mtime_ns", low=-(2**63)),
    )
