"""``/v1/sandboxes/{ref}/code``: run code in a context that keeps its names."""

from __future__ import annotations

from functools import partial

from pydantic import Field
from starlette.requests import Request
from starlette.types import ASGIApp

from casemate.api.native.operations import NDJSON, operation
from casemate.api.native.requests import Body, find_handle, read_body, using
from casemate.api.native.streams import Lines, lines
from casemate.sandbox import Handle, Sandboxes, cells
from casemate.sandbox.execs import Output


class RunCode(Body):
    code: str
    timeout_s: float | None = None
    context: str = Field("default", min_length=1, max_length=64)
    user: str | None = None


class Code:
    def __init__(self, sandboxes: Sandboxes) -> None:
        self._sandboxes = sandboxes

    @operation("Run code in a context that keeps its names", body=RunCode, gives=(NDJSON,))
    async def run(self, request: Request) -> ASGIApp:
        body = await read_body(request, RunCode)
        return lines(partial(_follow, find_handle(request, self._sandboxes), body))


async def _follow(handle: Handle, body: RunCode, out: Lines) -> None:
    opened = partial(cells.run, timeout_s=body.timeout_s, context=body.context, user=body.user)
    async with using(handle) as link, opened(link, body.code) as cell:
        while isinstance(item := await cell.read(), Output):
            await out.say_output(item)
        await out.say({"event": "end"} | item.to_json())
