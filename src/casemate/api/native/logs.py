"""``/v1/sandboxes/{ref}/logs``: what the guest's console said, all of it or the agent's lines only."""

from __future__ import annotations

from functools import partial
from typing import Literal

import anyio
from starlette.requests import Request
from starlette.types import ASGIApp

from casemate.api.native.operations import operation
from casemate.api.native.requests import Query, find_handle, read_query
from casemate.api.native.streams import Out, octets
from casemate.sandbox import Handle, Sandboxes

LOOK_EVERY_S = 0.3
TEXT = "text/plain"
AGENT = b"casemate-agent: "


class LogsQuery(Query):
    source: Literal["console", "agent"] = "console"
    follow: bool = False


class Logs:
    def __init__(self, sandboxes: Sandboxes) -> None:
        self._sandboxes = sandboxes

    @operation("Read what the guest's console said", query=LogsQuery, gives=(TEXT,))
    async def read(self, request: Request) -> ASGIApp:
        query = read_query(request, LogsQuery)
        send = partial(_send, find_handle(request, self._sandboxes), query)
        return octets(send, media_type=f"{TEXT}; charset=utf-8")


async def _send(handle: Handle, query: LogsQuery, out: Out) -> None:
    """What is still held, then with *follow* what comes until the sandbox ends."""
    seen, rest = 0, b""
    while True:
        data, written = await handle.console_since(seen)
        seen = written
        whole, newline, rest = (rest + data).rpartition(b"\n")
        if text := _chosen(whole + newline, query.source):
            await out.put(text)
        if not query.follow or handle.ended.is_set():
            break
        with anyio.move_on_after(LOOK_EVERY_S):
            await handle.ended.wait()
    if text := _chosen(rest, query.source):
        await out.put(text)


def _chosen(lines: bytes, source: str) -> bytes:
    if source == "console":
        return lines
    return b"".join(line for line in lines.splitlines(keepends=True) if line.startswith(AGENT))
