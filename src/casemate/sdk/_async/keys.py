"""API keys: for the daemon's own user, over its unix socket."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from casemate.sdk._async.client import AsyncClient


class AsyncKeys:
    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def create(
        self, *, name: str = "", tenant: str = "local", scopes: Sequence[str] = ("*",), expires_s: float | None = None
    ) -> dict[str, Any]:
        """A new key; its text, ``key``, is to be had this once. Raises InvalidSpec, Forbidden over TCP."""
        body = {"name": name, "tenant": tenant, "scopes": list(scopes), "expires_s": expires_s}
        return await self._client.call("POST", "/v1/keys", body=body)

    async def revoke(self, key_id: str) -> dict[str, Any]:
        """Refuse it from now on, and end what is under way with it. Raises NotFound."""
        return await self._client.call("DELETE", f"/v1/keys/{key_id}", again=True)

    async def list(self) -> list[dict[str, Any]]:
        """Oldest first, without their secrets; the revoked and expired ones too."""
        return await self._client.pages("/v1/keys", "keys")
