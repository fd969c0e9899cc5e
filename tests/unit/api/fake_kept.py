"""What was kept of sandboxes, of a daemon that keeps one: ``work@1``, of the tenant ``local``."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from casemate import errors

BUNDLE = b"a bundle" * 1000
SNAPSHOT: dict[str, Any] = {
    "name": "work",
    "version": 1,
    "tag": "good",
    "state": "ready",
    "why": None,
    "active": True,
    "parent": "python@1",
    "contains_session_state": True,
    "created_at": 1.7e9,
    "snapshot": "s" * 26,
    "vcpus": 1,
    "memory_mib": 512,
    "disk_mib": 1024,
    "last_used_at": None,
    "own_bytes": 2**28,
    "shared_bytes": 2**29,
    "size_bytes": 2**28,
    "artifacts": {},
    "users": [{"kind": "sandbox", "id": "a" * 26, "name": "alpha", "state": "suspended"}],
}


class FakeKept:
    """Both what it shows and what it carries; *asked* is what each call was asked for by whom."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, dict[str, Any]]] = []

    async def listed(self, tenant: str) -> list[dict[str, Any]]:
        return [SNAPSHOT | {"version": number} for number in (1, 2, 3)] if tenant == "local" else []

    async def get(self, tenant: str, ref: str) -> dict[str, Any]:
        _check(tenant, ref)
        return SNAPSHOT | {"misfits": [], "broken": None}

    async def remove(self, tenant: str, ref: str, **asked: Any) -> dict[str, Any]:
        _check(tenant, ref)
        self.asked.append(("remove", tenant, asked))
        return {"dry_run": False, "removed": [], "size_bytes": 0}

    async def prune(self, tenant: str, **asked: Any) -> dict[str, Any]:
        self.asked.append(("prune", tenant, asked))
        return {"dry_run": asked["dry_run"], "removed": [], "size_bytes": 0}

    @asynccontextmanager
    async def export(self, tenant: str, ref: str, **asked: Any) -> AsyncIterator[tuple[int, AsyncIterator[bytes]]]:
        _check(tenant, ref)
        self.asked.append(("export", tenant, asked))

        async def pieces() -> AsyncIterator[bytes]:
            yield BUNDLE[:3]
            yield BUNDLE[3:]

        yield len(BUNDLE), pieces()

    async def receive(
        self, tenant: str, name: str | None, sha256: str, pieces: AsyncIterator[bytes], **asked: Any
    ) -> dict[str, Any]:
        data = b"".join([piece async for piece in pieces])
        if hashlib.sha256(data).hexdigest() != sha256:
            raise errors.InvalidSpec("its sha256 is another")
        return SNAPSHOT | {"name": name or "work", "version": 2}


def _check(tenant: str, ref: str) -> None:
    if tenant != "local" or ref not in ("work", "work@1", "work:good", "mine"):
        raise errors.NotFound("there is no snapshot of that name")
