"""What was kept of sandboxes: versions of images that start where a sandbox was."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Any
from urllib.parse import quote

from casemate.sdk._async.client import AsyncClient

ANSWER_S = 120.0  # a gigabyte is hashed meanwhile


class AsyncSnapshots:
    """They are taken by ``await sandbox.snapshot(name, tag)`` and used as any image is."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def list(self) -> list[dict[str, Any]]:
        return await self._client.pages("/v1/snapshots", "snapshots")

    async def get(self, ref: str) -> dict[str, Any]:
        """By name, ``name@version``, ``name:tag`` or id: its sizes, its parent, who uses it. Raises NotFound."""
        return await self._client.call("GET", _path(ref), answer_s=ANSWER_S)

    async def remove(self, ref: str) -> dict[str, Any]:
        """Delete one; what went, and ``size_bytes``. Raises StateConflict, naming them, while others stand on it."""
        return await self._client.call("DELETE", _path(ref), answer_s=ANSWER_S)

    async def prune(self, *, dry_run: bool = False) -> dict[str, Any]:
        """Delete what failed, and what neither a name nor a tag means and nobody uses; as ``remove`` says it."""
        body = {"dry_run": dry_run}
        return await self._client.call("POST", "/v1/snapshots/prune", body=body, answer_s=ANSWER_S)

    def export(self, ref: str, *, base: bool = True) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """One as a tar in pieces: ``async with snapshots.export(ref) as pieces: async for …``.

        Whoever imports it needs the sha256 of all of it. Without *base* it has no kernel and no disks of its image, and
        can go only where that is.
        """
        params = None if base else {"base": "0"}
        return self._client.stream("GET", f"{_path(ref)}/export", params=params, answer_s=ANSWER_S)

    async def import_(
        self, data: bytes | AsyncIterable[bytes], *, sha256: str, name: str | None = None
    ) -> dict[str, Any]:
        """An exported one becomes the next, active version of its name, or of *name*. For the host's owner.

        Raises InvalidSpec for what is none, was damaged or has another *sha256*, Unfit where this host is of another
        platform, HostFull; nothing of it stays then.
        """
        params = {"sha256": sha256} | ({"name": name} if name else {})
        response = await self._client.request(
            "POST", "/v1/snapshots/import", content=data, params=params, answer_s=ANSWER_S, write_s=ANSWER_S
        )
        found: dict[str, Any] = response.json()
        return found


def _path(ref: str) -> str:
    return f"/v1/snapshots/{quote(ref, safe='')}"
