"""``/v1/sandboxes/{ref}/suspend``, ``/resume``, ``/keep-alive``: what becomes of a sandbox between its uses."""

from __future__ import annotations

import anyio
from starlette.requests import Request
from starlette.responses import Response

from casemate.api.auth import principal
from casemate.api.native.operations import operation
from casemate.api.native.requests import Body, read_body
from casemate.api.native.sandboxes import SandboxOut, said, shown
from casemate.sandbox import Sandboxes


class ResumeSandbox(Body):
    """*cold*: boot it from its disk; what was in memory is lost."""

    cold: bool = False


class KeepAlive(Body):
    for_s: float


class Lives:
    """What is asked for is done also when its client does not wait for the answer."""

    def __init__(self, sandboxes: Sandboxes) -> None:
        self._sandboxes = sandboxes

    @operation("Store a sandbox and give its memory back; it is suspended when this answers", answer=SandboxOut)
    async def suspend(self, request: Request) -> Response:
        who, ref = principal(request), request.path_params["ref"]
        with anyio.CancelScope(shield=True):
            info = await self._sandboxes.suspend(who.tenant, ref, actor=who.key_id)
        return said(shown(info))

    @operation("Let a suspended sandbox go on; it is running when this answers", body=ResumeSandbox, answer=SandboxOut)
    async def resume(self, request: Request) -> Response:
        body = await read_body(request, ResumeSandbox)
        who, ref = principal(request), request.path_params["ref"]
        with anyio.CancelScope(shield=True):
            info = await self._sandboxes.resume(who.tenant, ref, cold=body.cold, actor=who.key_id)
        return said(shown(info))

    @operation("Keep a sandbox from idling for so long, whatever it does", body=KeepAlive, answer=SandboxOut)
    async def keep_alive(self, request: Request) -> Response:
        body = await read_body(request, KeepAlive)
        info = await self._sandboxes.keep_alive(principal(request).tenant, request.path_params["ref"], body.for_s)
        return said(shown(info, parked=self._sandboxes.is_parked(info.id)))
