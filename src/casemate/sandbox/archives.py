"""Folders of a guest as a stream of tar. The host passes the stream on; who unpacks it distrusts it."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator
from contextlib import asynccontextmanager

from casemate.sandbox import parse
from casemate.sandbox.files import Reader, answer, checked_path
from casemate.sandbox.link import Link


@asynccontextmanager
async def open_pack(link: Link, path: str, *, user: str | None = None) -> AsyncIterator[Reader]:
    """A folder and all below it. Raises FileRefused with the guest kernel's errno, ArchiveRefused."""
    async with link.open("archive", {"op": "pack", "path": checked_path(path), "user": user}) as channel:
        channel.finish()
        yield Reader(channel)


async def unpack(link: Link, path: str, pieces: AsyncIterable[bytes], *, user: str | None = None) -> tuple[int, int]:
    """Make what the archive *pieces* holds below *path*, which is made where it is missing: (members, bytes).

    Each file appears when it is whole; what was made before a failure stays.
    Raises FileRefused with the guest kernel's errno, ArchiveRefused.
    """
    async with link.open("archive", {"op": "unpack", "path": checked_path(path), "user": user}) as channel:
        async for piece in pieces:
            await channel.send(piece)
        channel.finish()
        body = await answer(channel, "unpacked")
        return parse.whole(body, "members"), parse.whole(body, "size")
