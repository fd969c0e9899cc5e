# Generated from _async/events.py by tools/generate_sync.py; change that and run it.
"""What happened on the daemon's host, and whether the record of it is whole."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from casemate.sdk._sync.client import Client

VERIFY_ANSWER_S = 600.0  # it reads every event there is


class Events:
    """Events are objects as the daemon says them: id, created_at, event, actor, subject, detail, …"""

    def __init__(self, client: Client) -> None:
        self._client = client

    @contextmanager
    def follow(self, *, after: int | None = None, all_tenants: bool = False) -> Iterator[Iterator[dict[str, Any]]]:
        """Those after that event, or from now on, as they happen; leave the block to end it."""
        params = {"follow": "1"} | _params(after, None, all_tenants)
        with self._client.lines("GET", "/v1/events", params=params) as lines:
            yield self._events_in(lines)

    def _events_in(self, lines: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        for line in lines:
            if "id" in line:
                yield line

    def verify(self, mark: str | None = None) -> dict[str, Any]:
        """``ok``, ``events``, ``mark``, ``broken`` and ``warnings``; *mark* is that of an earlier verification."""
        params = {"mark": mark} if mark else None
        return self._client.call("GET", "/v1/audit", params=params, answer_s=VERIFY_ANSWER_S)

    def list(self, *, after: int | None = None, limit: int = 100, all_tenants: bool = False) -> list[dict[str, Any]]:
        """Up to *limit* events after that one, or the newest; oldest first."""
        found = self._client.call("GET", "/v1/events", params=_params(after, limit, all_tenants))
        return list(found["events"])


def _params(after: int | None, limit: int | None, all_tenants: bool) -> dict[str, str]:
    given = {"after": after, "limit": limit, "all_tenants": 1 if all_tenants else None}
    return {name: str(value) for name, value in given.items() if value is not None}
