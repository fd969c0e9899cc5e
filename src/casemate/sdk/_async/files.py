"""A sandbox's files."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator
from contextlib import AbstractAsyncContextManager

from casemate.sdk._async.client import AsyncClient
from casemate.sdk.results import FileEntry


class AsyncFiles:
    """Paths are relative to the user's home; everything is done with that user's rights.

    All raise FileRefused with the guest kernel's errno in its evidence.
    """

    def __init__(self, client: AsyncClient, path: str) -> None:
        self._client = client
        self._path = f"{path}/files"

    async def read(self, path: str, *, user: str | None = None) -> bytes:
        async with self.stream(path, user=user) as pieces:
            return b"".join([piece async for piece in pieces])

    async def read_text(self, path: str, *, encoding: str = "utf-8", user: str | None = None) -> str:
        return (await self.read(path, user=user)).decode(encoding)

    def stream(self, path: str, *, user: str | None = None) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """The file's bytes in pieces as they come: ``async with files.stream(p) as pieces: async for …``."""
        return self._client.stream("GET", self._path, params=_query(path, user))

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
        response = await self._client.request("PUT", self._path, content=content, params=params)
        return int(response.json()["size"])

    async def stat(self, path: str, *, user: str | None = None) -> FileEntry:
        return FileEntry.from_json(await self._client.call("GET", f"{self._path}/stat", params=_query(path, user)))

    async def list(self, path: str = ".", *, user: str | None = None) -> list[FileEntry]:
        """The entries of a folder, by name."""
        found = await self._client.call("GET", f"{self._path}/list", params=_query(path, user))
        return [FileEntry.from_json(entry) for entry in found["entries"]]

    async def remove(self, path: str, *, recursive: bool = False, user: str | None = None) -> None:
        params = _query(path, user)
        if recursive:
            params["recursive"] = "1"
        await self._client.request("DELETE", self._path, params=params)


def _query(path: str, user: str | None) -> dict[str, str]:
    return {"path": path} if user is None else {"path": path, "user": user}
