# Generated from _async/keys.py by tools/generate_sync.py; change that and run it.
"""API keys: for the daemon's own user, over its unix socket."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from casemate.sdk._sync.client import Client


class Keys:
    def __init__(self, client: Client) -> None:
        self._client = client

    def create(
        self, *, name: str = "", tenant: str = "local", scopes: Sequence[str] = ("*",), expires_s: float | None = None
    ) -> dict[str, Any]:
        """A new key; its text, ``key``, is to be had this once. Raises InvalidSpec, Forbidden over TCP."""
        body = {"name": name, "tenant": tenant, "scopes": list(scopes), "expires_s": expires_s}
        return self._client.call("POST", "/v1/keys", body=body)

    def revoke(self, key_id: str) -> dict[str, Any]:
        """Refuse it from now on, and end what is under way with it. Raises NotFound."""
        return self._client.call("DELETE", f"/v1/keys/{key_id}", again=True)

    def list(self) -> list[dict[str, Any]]:
        """Oldest first, without their secrets; the revoked and expired ones too."""
        return self._client.pages("/v1/keys", "keys")
