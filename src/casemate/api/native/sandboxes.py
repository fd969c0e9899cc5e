"""``/v1/sandboxes``: create, list, get, kill."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Literal

import anyio
from pydantic import BaseModel, ConfigDict
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from casemate.api.auth import principal
from casemate.api.native.news import Progress, with_news
from casemate.api.native.operations import JSON, NDJSON, operation
from casemate.api.native.paging import LabelledQuery, Place, page
from casemate.api.native.requests import Body, read_body, read_query
from casemate.api.native.streams import Lines, lines, while_wanted
from casemate.sandbox import Handle, Reason, Sandboxes, SandboxInfo, SandboxSpec

Create = Callable[..., Awaitable[Handle]]


class CreateSandbox(Body):
    """The fields of Sandbox.create. A null ``idle_timeout_s`` or ``park_after_s`` means never."""

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
    on_idle: Literal["kill", "keep", "suspend"] = "kill"
    park_after_s: float | None = 5
    auto_resume: bool = True
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
    admitted_ms: float | None


class VmmOut(BaseModel):
    name: str
    version: str
    sha256: str


class SeccompOut(BaseModel):
    filters: int
    names: list[str]


class LimitsOut(BaseModel):
    version: str
    memory_bytes: int
    cpu_percent: int
    pids: int


class JailOut(BaseModel):
    uid: int
    caps: list[str]
    seccomp: SeccompOut
    no_new_privs: bool
    namespaces: dict[str, str]
    cgroup: str | None
    limits: LimitsOut | Literal["rlimit-only"]
    rlimits: dict[str, int]
    oom_score_adj: int


class AttestedImageOut(BaseModel):
    reference: str
    snapshot: str
    memory_sha256: str


class PolicyOut(BaseModel):
    network: str
    digest: str


class AttestationOut(BaseModel):
    """What the sandbox's VMM was by the kernel's account when it started."""

    isolation: str
    accelerator: str
    vmm: VmmOut
    jail: JailOut
    kernel: str
    image: AttestedImageOut
    policy: PolicyOut


class SuspendedOut(BaseModel):
    """What is stored of a suspended sandbox, beside what its guest had changed."""

    at: float
    stored_bytes: int
    dirty_bytes: int
    written_bytes: int
    pause_ms: float
    took_ms: float


class SandboxOut(BaseModel):
    """A sandbox as clients see it. *parked*: it is running, and frozen until somebody calls it."""

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
    attestation: AttestationOut | None
    park_after_s: float | None
    auto_resume: bool
    suspended: SuspendedOut | None
    parked: bool
    forked_from: str | None


class SandboxList(BaseModel):
    sandboxes: list[SandboxOut]
    next: str | None


class ListQuery(LabelledQuery):
    all: bool = False


class SandboxResource:
    def __init__(self, sandboxes: Sandboxes) -> None:
        self._sandboxes = sandboxes

    @operation(
        "Make a sandbox; attached, it ends with the response",
        body=CreateSandbox,
        answer=SandboxOut,
        status=201,
        gives=(JSON, NDJSON),
    )
    async def create(self, request: Request) -> Response | ASGIApp:
        body = await read_body(request, CreateSandbox)
        who, spec = principal(request), body.spec()
        create: Create = partial(self._sandboxes.create, who.tenant, spec, actor=who.key_id)
        if body.attached:
            return lines(partial(self._create_attached, create, body.progress), status=201)
        if body.progress:
            return lines(partial(self._create_told, create), status=201)
        handle = await while_wanted(request, create)
        if handle is None:  # its client went away while it was pending; create has ended it
            return Response(status_code=400)
        return said(shown(handle.info), 201)

    async def _create(self, create: Create, tell: bool, out: Lines) -> Handle:
        """With *tell*, lines of progress come before the sandbox; most creates have nothing to tell."""
        if not tell:
            return await create()
        made: list[Handle] = []

        async def create_and_tell(progress: Progress) -> None:
            made.append(await create(progress=progress))

        try:
            await with_news(out, create_and_tell)
        except BaseException:  # its client went away before it had read the news
            for handle in made:
                handle.ask_stop(Reason.KILLED, "its client went away")
            raise
        return made[0]

    async def _create_told(self, create: Create, out: Lines) -> None:
        handle = await self._create(create, True, out)
        try:
            await out.put(shown(handle.info).model_dump_json().encode() + b"\n")
        except BaseException:  # its client went away before it was told the id
            handle.ask_stop(Reason.KILLED, "its client went away")
            raise

    async def _create_attached(self, create: Create, tell: bool, out: Lines) -> None:
        """Lives no longer than its client's connection, whatever becomes of the client."""
        handle = await self._create(create, tell, out)
        try:
            await out.put(shown(handle.info).model_dump_json().encode() + b"\n")
            await handle.ended.wait()
            await out.say({"event": "terminated", "sandbox": shown(handle.info).model_dump()})
        finally:
            handle.ask_stop(Reason.KILLED, "its client went away")

    @operation("List the sandboxes, oldest first", query=ListQuery, answer=SandboxList)
    async def list(self, request: Request) -> Response:
        query = read_query(request, ListQuery)
        found = await self._sandboxes.list(principal(request).tenant, include_terminated=query.all)
        wanted = [info for info in found if query.matches(info.labels)]
        wanted.sort(key=_place)
        listed, following = page(wanted, query, _place)
        return said(SandboxList(sandboxes=[self._shown(info) for info in listed], next=following))

    @operation("Show a sandbox", answer=SandboxOut)
    async def get(self, request: Request) -> Response:
        return said(self._shown(await self._sandboxes.info(principal(request).tenant, request.path_params["ref"])))

    @operation("End a sandbox; it is gone when this answers", answer=SandboxOut)
    async def kill(self, request: Request) -> Response:
        with anyio.CancelScope(shield=True):  # asked for is asked for, also when the client does not wait
            info = await self._sandboxes.kill(principal(request).tenant, request.path_params["ref"])
        return said(shown(info))

    def _shown(self, info: SandboxInfo) -> SandboxOut:
        return shown(info, parked=self._sandboxes.is_parked(info.id))


def _place(info: SandboxInfo) -> Place:
    return info.created_at, info.id


def shown(info: SandboxInfo, *, parked: bool = False) -> SandboxOut:
    return SandboxOut.model_validate(info.to_json() | {"parked": parked})


def said(body: BaseModel, status: int = 200) -> Response:
    return Response(body.model_dump_json(), status, media_type="application/json")
