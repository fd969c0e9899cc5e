# Generated from _async/pools.py by tools/generate_sync.py; change that and run it.
"""Pools: ready sandboxes of an image, so that a create does not wait for a restore."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from casemate.sdk._sync.client import Client


class Pools:
    def __init__(self, client: Client) -> None:
        self._client = client

    def set(
        self,
        image: str,
        *,
        min_ready: int,
        max_ready: int | None = None,
        target_utilization: float = 0.7,
        vcpus: int | None = None,
        memory_mib: int | None = None,
        disk_mib: int | None = None,
        network: str = "none",
        schedule: str | None = None,
        shared: bool = False,
    ) -> dict[str, Any]:
        """Keep *min_ready* to *max_ready* sandboxes of *image* ready, in that shape; the pool as it is by now.

        *schedule*: cron's five fields in the host's local time; outside it *min_ready* counts as 0. *shared*: for
        every tenant. Raises InvalidSpec, NotFound for the image, Forbidden, QuotaExceeded.
        """
        body = {
            "image": image,
            "min_ready": min_ready,
            "max_ready": max_ready,
            "target_utilization": target_utilization,
            "vcpus": vcpus,
            "memory_mib": memory_mib,
            "disk_mib": disk_mib,
            "network": network,
            "schedule": schedule,
            "shared": shared,
        }
        return self._client.call("PUT", "/v1/pools", body=body, again=True)

    def get(self, pool: str) -> dict[str, Any]:
        """By id or image. Raises NotFound, InvalidSpec when several pools have that image."""
        return self._client.call("GET", _path(pool))

    def remove(self, pool: str) -> dict[str, Any]:
        """By id or image. Its ready sandboxes are ended, those in use live on. Raises NotFound, InvalidSpec."""
        return self._client.call("DELETE", _path(pool))

    def list(self) -> list[dict[str, Any]]:
        """Oldest first; those for everybody too."""
        return self._client.pages("/v1/pools", "pools")


def _path(pool: str) -> str:
    return f"/v1/pools/{quote(pool, safe='')}"
