"""``/v1/sandboxes/{ref}/stats``: what one takes."""

from __future__ import annotations

from dataclasses import asdict

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from casemate.api.native.operations import operation
from casemate.api.native.requests import find_handle
from casemate.sandbox import Sandboxes
from casemate.sandbox.stats import sample


class StatsResource:
    def __init__(self, sandboxes: Sandboxes) -> None:
        self._sandboxes = sandboxes

    @operation("Show what a sandbox takes")
    async def get(self, request: Request) -> Response:
        return JSONResponse(asdict(await sample(find_handle(request, self._sandboxes))))
