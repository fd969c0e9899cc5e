"""``/v1/sandboxes``: create, list, get, kill."""

from __future__ import annotations

from functools import partial
from typing import Literal

import anyio
from pydantic import BaseModel, ConfigDict
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from casemate.api.auth import principal
from casemate.api.native.news import Progress, with_news
from casemate.api.native.requests import Body, Query, read_body, read_query
from casemate.api.native.streams import Lines, lines, while_wanted
from casemate.sandbox import Handle, Reason, Sandboxes, SandboxInfo, SandboxSpec


class CreateSandbox(Body):
    """The fields of Sandbox.create. An ``idle_timeout_s`` of null means never; absent it is 900."""

    image: str = "python"
    name: str | None = None
    vcpus: int | None = None
    memory_mib: int | None = None
    disk_mib: int | None = None
    env: dict[str, str] | None = None
    user: str | None = None
    cwd: str | None = None
    labels: dict[str, str] | None = None
    max_duration_s: float | None = None
    idle_timeout_s: float | None = 900
    on_idle: Literal["kill", "keep"] = "kill"
    network: str = "none"
    attached: bool = False
    create_timeout_s: float = 60
    build: bool = True
    progress: bool = False

    def spec(self) -> SandboxSpec:
        """Raises InvalidSpec, NotSupported."""
        fields = dict(self)
        del fields["progress"]
        return SandboxSpec(**{**fields, "env": self.env or {}, "labels": self.labels or {}})


class StateReasonOut(BaseModel):
    code: str
    message: str


class TimingsOut(BaseModel):
    restore_ms: float | None
    first_answer_ms: float | None


class SandboxOut(BaseModel):
    """A sandbox as clients see it."""

    model_config = ConfigDict(extra="ignore")

    id: str
    name: str | None
    image: str
    state: str
    state_reason: StateReasonOut | None
    isolation: str
    accelerator: str
    vcpus: int
    memory_mib: int
    disk_mib: int
    labels: dict[str, str]
    created_at: float
    updated_at: float
    idle_timeout_s: float | None
    on_idle: str
    max_duration_s: float | None
    network: str
    attached: bool
    timings: TimingsOut
    pid: int | None


class SandboxList(BaseModel):
    sandboxes: list[SandboxOut]


class ListQuery(Query):
    all: bool = False


class SandboxResource:
    def __init__(self, sandboxes: Sandboxes) -> None:
        self._sandboxes = sandboxes

    async def create(self, request: Request) -> Response | ASGIApp:
        body = await read_body(request, CreateSandbox)
        tenant, spec = principal(request).tenant, body.spec()
        if body.attached:
            return lines(partial(self._create_attached, tenant, spec, body.progress), status=201)
        if body.progress:
            return lines(partial(self._create_told, tenant, spec), status=201)
        handle = await while_wanted(request, partial(self._sandboxes.create, tenant, spec))
        if handle is None:  # its client went away while it was pending; create has ended it
            return Response(status_code=400)
        return _said(shown(handle.info), 201)

    async def _create(self, tenant: str, spec: SandboxSpec, tell: bool, out: Lines) -> Handle:
        """With *tell*, lines of progress come before the sandbox; most creates have nothing to tell."""
        if not tell:
            return await self._sandboxes.create(tenant, spec)
        made: list[Handle] = []

        async def create(progress: Progress) -> None:
            made.append(await self._sandboxes.create(tenant, spec, progress))

        try:
            await with_news(out, create)
        except BaseException:  # its client went away before it had read the news
            for handle in made:
                handle.ask_stop(Reason.KILLED, "its client went away")
            raise
        return made[0]

    async def _create_told(self, tenant: str, spec: SandboxSpec, out: Lines) -> None:
        handle = await self._create(tenant, spec, True, out)
        try:
            await out.put(shown(handle.info).model_dump_json().encode() + b"\n")
        except BaseException:  # its client went away before it was told the id
            handle.ask_stop(Reason.KILLED, "its client went away")
            raise

    async def _create_attached(self, tenant: str, spec: SandboxSpec, tell: bool, out: Lines) -> None:
        """Lives no longer than its client's connection, whatever becomes of the client."""
        handle = await self._create(tenant, spec, tell, out)
        try:
            await out.put(shown(handle.info).model_dump_json().encode() + b"\n")
            await handle.ended.wait()
            await out.say({"event": "terminated", "sandbox": shown(handle.info).model_dump()})
        finally:
            handle.ask_stop(Reason.KILLED, "its client went away")

    async def list(self, request: Request) -> Response:
        query = read_query(request, ListQuery)
        found = await self._sandboxes.list(principal(request).tenant, include_terminated=query.all)
        return _said(SandboxList(sandboxes=[shown(info) for info in found]))

    async def get(self, request: Request) -> Response:
        return _said(shown(await self._sandboxes.info(principal(request).tenant, request.path_params["ref"])))

    async def kill(self, request: Request) -> Response:
        with anyio.CancelScope(shield=True):  # asked for is asked for, also when the client does not wait
            info = await self._sandboxes.kill(principal(request).tenant, request.path_params["ref"])
        return _said(shown(info))


def shown(info: SandboxInfo) -> SandboxOut:
    return SandboxOut.model_validate(info.to_json())


def _said(body: BaseModel, status: int = 200) -> Response:
    return Response(body.model_dump_json(), status, media_type="application/json")
