"""A sandbox's files."""

from __future__ import annotations

import os
from collections.abc import AsyncIterable, AsyncIterator
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path

from casemate.archive import Unpacked, Unpacker, pack
from casemate.sdk._async.beside import in_thread
from casemate.sdk._async.client import AsyncClient
from casemate.sdk.results import FileEntry

FOLDER_LIMIT_BYTES = 64 * 2**30
PATIENCE_S = 120.0  # for a guest that is busy, or suspended meanwhile, to take the next piece or list a large folder
FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class AsyncFiles:
    """Paths are relative to the user's home; everything is done with that user's rights.

    All raise FileRefused with the guest kernel's errno in its evidence.
    """

    def __init__(self, client: AsyncClient, path: str) -> None:
        self._client = client
        self._path = f"{path}/files"

    async def read(self, path: str, *, offset: int = 0, length: int | None = None, user: str | None = None) -> bytes:
        """The file's bytes, or *length* of them from *offset* on, as far as there are so many."""
        async with self.stream(path, offset=offset, length=length, user=user) as pieces:
            return b"".join([piece async for piece in pieces])

    async def read_text(self, path: str, *, encoding: str = "utf-8", user: str | None = None) -> str:
        return (await self.read(path, user=user)).decode(encoding)

    def stream(
        self, path: str, *, offset: int = 0, length: int | None = None, user: str | None = None
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """The file's bytes in pieces as they come: ``async with files.stream(p) as pieces: async for …``."""
        params = _query(path, user) | ({"offset": str(offset)} if offset else {})
        if length is not None:
            params["length"] = str(length)
        return self._client.stream("GET", self._path, params=params)

    async def write(
        self,
        path: str,
        data: bytes | str | AsyncIterable[bytes],
        *,
        mode: int | None = None,
        user: str | None = None,
    ) -> int:
        """Replace the file, and make the folders above it; the number of bytes written.

        The finished file is renamed into place: a write that fails leaves what was there.
        """
        params = _query(path, user)
        if mode is not None:
            params["mode"] = f"{mode:04o}"
        content = data.encode() if isinstance(data, str) else data
        response = await self._client.request(
            "PUT", self._path, content=content, params=params, answer_s=PATIENCE_S, write_s=PATIENCE_S
        )
        return int(response.json()["size"])

    async def stat(self, path: str, *, follow: bool = False, user: str | None = None) -> FileEntry:
        """What is there; with *follow* what a symbolic link there leads to."""
        params = _query(path, user) | ({"follow": "1"} if follow else {})
        return FileEntry.from_json(await self._client.call("GET", f"{self._path}/stat", params=params))

    async def list(self, path: str = ".", *, user: str | None = None) -> list[FileEntry]:
        """The entries of a folder, by name."""
        found = await self._client.call("GET", f"{self._path}/list", params=_query(path, user), answer_s=PATIENCE_S)
        return [FileEntry.from_json(entry) for entry in found["entries"]]

    async def mkdir(self, path: str, *, user: str | None = None) -> None:
        """Make a folder and those above it; one that is there is no error."""
        await self._client.call("POST", f"{self._path}/mkdir", params=_query(path, user))

    async def move(self, path: str, to: str, *, user: str | None = None) -> None:
        """Rename a file or folder; a file that is at *to* is replaced. Within one file system of the guest."""
        await self._client.call("POST", f"{self._path}/move", params=_query(path, user) | {"to": to})

    def archive(self, path: str, *, user: str | None = None) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """A folder and all below it as a stream of tar. It comes from the guest: unpack it with ``get_folder``."""
        return self._client.stream("GET", f"{self._path}/archive", params=_query(path, user))

    async def unpack(self, path: str, tar: bytes | AsyncIterable[bytes], *, user: str | None = None) -> int:
        """Unpack a tar archive below *path*, which is made where it is missing; the number of its members.

        Raises ArchiveRefused for a name that leads out, a hard link, a device, an archive that is cut off.
        """
        params = _query(path, user)
        response = await self._client.request("PUT", f"{self._path}/archive", content=tar, params=params)
        return int(response.json()["members"])

    async def put_folder(self, local: str | Path, path: str, *, user: str | None = None) -> int:
        """Copy what is in the folder *local* into *path*, with modes and symbolic links; how many were copied.

        Pipes, sockets and devices are left out.
        """
        return await self.unpack(path, _packed(local), user=user)

    async def get_folder(
        self, path: str, local: str | Path, *, user: str | None = None, limit_bytes: int = FOLDER_LIMIT_BYTES
    ) -> Unpacked:
        """Copy what is in the sandbox's folder *path* into *local*, which is made where it is missing.

        Nothing is made or followed outside *local*, whatever the sandbox sends: symbolic links that lead out are
        left out and named. Raises ArchiveRefused for what no honest agent sends, and over *limit_bytes*: a sparse
        file takes no room there. OSError when this side cannot write.
        """
        new = not os.path.lexists(local)
        os.makedirs(local, exist_ok=True)
        unpacker = Unpacker(os.open(local, FOLDER_FLAGS), limit_bytes=limit_bytes, new_root=new)
        try:
            async with self.archive(path, user=user) as pieces:
                async for piece in pieces:
                    await in_thread(partial(unpacker.feed, piece))
            return unpacker.finish()
        finally:
            unpacker.close()

    async def remove(self, path: str, *, recursive: bool = False, user: str | None = None) -> None:
        params = _query(path, user)
        if recursive:
            params["recursive"] = "1"
        await self._client.request("DELETE", self._path, params=params)


async def _packed(local: str | Path) -> AsyncIterator[bytes]:
    packed = pack(os.fspath(local))
    while piece := await in_thread(partial(next, packed, b"")):
        yield piece


def _query(path: str, user: str | None) -> dict[str, str]:
    return {"path": path} if user is None else {"path": path, "user": user}
