"""``/v1/sandboxes/{ref}/contexts``: the interpreters of a sandbox, each with names of its own."""

from __future__ import annotations

from dataclasses import asdict

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from casemate.api.native.operations import operation
from casemate.api.native.requests import Body, find_handle, read_body, using
from casemate.api.native.streams import while_wanted
from casemate.sandbox import Sandboxes, cells, contexts


class CreateContext(Body):
    """*language*: python, bash, javascript, or jupyter:KERNEL for an installed kernel."""

    language: str = "python"
    cwd: str | None = None
    env: dict[str, str] | None = None
    user: str | None = None

    def spec(self) -> contexts.ContextSpec:
        """Raises InvalidSpec."""
        return contexts.ContextSpec(self.language, self.cwd, self.env or {}, self.user)


class Complete(Body):
    """*cursor* counts characters."""

    code: str
    cursor: int


class Inspect(Complete):
    """*cursor* counts characters; with *detail* 1 the answer has the source, where there is one."""

    detail: int = 0


class ContextAnswer(BaseModel):
    context_id: str
    language: str
    version: str | None
    cwd: str | None
    state: str
    queued: int
    execution_count: int
    pid: int | None


class ContextList(BaseModel):
    contexts: list[ContextAnswer]


class Completions(BaseModel):
    matches: list[str]
    start: int
    end: int


class Inspection(BaseModel):
    """*data*: a text for each MIME type."""

    found: bool
    data: dict[str, str]


class Contexts:
    def __init__(self, sandboxes: Sandboxes) -> None:
        self._sandboxes = sandboxes

    @operation("Start a context, and wait until it is ready", body=CreateContext, answer=ContextAnswer, status=201)
    async def create(self, request: Request) -> Response:
        spec = (await read_body(request, CreateContext)).spec()

        async def act() -> contexts.ContextInfo:
            async with using(find_handle(request, self._sandboxes)) as link:
                return await contexts.create(link, spec)

        made = await while_wanted(request, act)
        return JSONResponse(made.to_json(), 201) if made is not None else Response(status_code=400)

    @operation("List a sandbox's contexts", answer=ContextList)
    async def list(self, request: Request) -> Response:
        async with using(find_handle(request, self._sandboxes)) as link:
            return JSONResponse({"contexts": [info.to_json() for info in await contexts.listed(link)]})

    @operation("Describe a context", answer=ContextAnswer)
    async def get(self, request: Request) -> Response:
        async with using(find_handle(request, self._sandboxes)) as link:
            return JSONResponse((await contexts.find(link, context_id_of(request))).to_json())

    @operation("End a context and all its names")
    async def remove(self, request: Request) -> Response:
        async with using(find_handle(request, self._sandboxes)) as link:
            await contexts.remove(link, context_id_of(request))
        return JSONResponse({})

    @operation("Begin a context anew, without its names", answer=ContextAnswer)
    async def restart(self, request: Request) -> Response:
        async with using(find_handle(request, self._sandboxes)) as link:
            return JSONResponse((await contexts.restart(link, context_id_of(request))).to_json())

    @operation("Interrupt what runs in a context, as Ctrl-C does")
    async def interrupt(self, request: Request) -> Response:
        async with using(find_handle(request, self._sandboxes)) as link:
            await contexts.interrupt(link, context_id_of(request))
        return JSONResponse({})

    @operation("Say what a name in a piece of code could become", body=Complete, answer=Completions)
    async def complete(self, request: Request) -> Response:
        body = await read_body(request, Complete)
        async with using(find_handle(request, self._sandboxes)) as link:
            found = await contexts.complete(link, context_id_of(request), body.code, body.cursor)
        return JSONResponse(asdict(found))

    @operation("Say what a name in a piece of code is", body=Inspect, answer=Inspection)
    async def inspect(self, request: Request) -> Response:
        body = await read_body(request, Inspect)
        async with using(find_handle(request, self._sandboxes)) as link:
            found = await contexts.inspect(link, context_id_of(request), body.code, body.cursor, body.detail)
        return JSONResponse(asdict(found))


def context_id_of(request: Request) -> str:
    context_id: str = request.path_params["context_id"]
    cells.check_id("context", context_id)
    return context_id
