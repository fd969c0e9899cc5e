# Generated from _async/files.py by tools/generate_sync.py; change that and run it.
"""A sandbox's files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager

from casemate.sdk._sync.client import Client
from casemate.sdk.results import FileEntry


class Files:
    """Paths are relative to the user's home; everything is done with that user's rights.

    All raise FileRefused with the guest kernel's errno in its evidence.
    """

    def __init__(self, client: Client, path: str) -> None:
        self._client = client
        self._path = f"{path}/files"

    def read(self, path: str, *, user: str | None = None) -> bytes:
        with self.stream(path, user=user) as pieces:
            return b"".join([piece for piece in pieces])

    def read_text(self, path: str, *, encoding: str = "utf-8", user: str | None = None) -> str:
        return (self.read(path, user=user)).decode(encoding)

    def stream(self, path: str, *, user: str | None = None) -> AbstractContextManager[Iterator[bytes]]:
        """The file's bytes in pieces as they come: ``with files.stream(p) as pieces: for …``."""
        return self._client.stream("GET", self._path, params=_query(path, user))

    def write(
        self,
        path: str,
        data: bytes | str | Iterable[bytes],
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
        response = self._client.request("PUT", self._path, content=content, params=params)
        return int(response.json()["size"])

    def stat(self, path: str, *, user: str | None = None) -> FileEntry:
        return FileEntry.from_json(self._client.call("GET", f"{self._path}/stat", params=_query(path, user)))

    def list(self, path: str = ".", *, user: str | None = None) -> list[FileEntry]:
        """The entries of a folder, by name."""
        found = self._client.call("GET", f"{self._path}/list", params=_query(path, user))
        return [FileEntry.from_json(entry) for entry in found["entries"]]

    def remove(self, path: str, *, recursive: bool = False, user: str | None = None) -> None:
        params = _query(path, user)
        if recursive:
            params["recursive"] = "1"
        self._client.request("DELETE", self._path, params=params)


def _query(path: str, user: str | None) -> dict[str, str]:
    return {"path": path} if user is None else {"path": path, "user": user}
