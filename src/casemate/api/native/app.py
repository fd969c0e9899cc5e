"""All routes of ``/v1``, one path with all its methods at a time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from casemate.api.auth import Authenticated
from casemate.api.errors import HANDLERS
from casemate.api.native.code import Code
from casemate.api.native.execs import Execs
from casemate.api.native.files import Files
from casemate.api.native.images import Images, ImageService
from casemate.api.native.sandboxes import SandboxResource
from casemate.api.native.stats import StatsResource
from casemate.config import Found
from casemate.sandbox import Sandboxes

Answer = Response | ASGIApp
Handler = Callable[[Request], Awaitable[Answer]]


def app(
    sandboxes: Sandboxes,
    images: ImageService,
    health: Callable[[], dict[str, Any]],
    settings: Sequence[Found] = (),
) -> Starlette:
    """The ASGI app over these services; it owns none of them. *settings* are what the daemon runs with."""
    boxes, execs, files = SandboxResource(sandboxes), Execs(sandboxes), Files(sandboxes)
    code, shelf, stats = Code(sandboxes), Images(images), StatsResource(sandboxes)

    async def say_health(request: Request) -> Response:
        return JSONResponse(health())

    async def say_settings(request: Request) -> Response:
        return JSONResponse({"settings": [found.to_json() for found in settings]})

    sandbox = "/v1/sandboxes/{ref}"
    routes = [
        _route("/v1/health", GET=say_health),
        _route("/v1/config", GET=say_settings),
        _route("/v1/sandboxes", GET=boxes.list, POST=boxes.create),
        _route(sandbox, GET=boxes.get, DELETE=boxes.kill),
        _route(f"{sandbox}/stats", GET=stats.get),
        _route(f"{sandbox}/execs", GET=execs.list, POST=execs.start),
        _route(f"{sandbox}/execs/{{exec_id}}/output", GET=execs.output),
        _route(f"{sandbox}/execs/{{exec_id}}/stdin", POST=execs.stdin),
        _route(f"{sandbox}/execs/{{exec_id}}/signal", POST=execs.signal),
        _route(f"{sandbox}/files", GET=files.read, PUT=files.write, DELETE=files.remove),
        _route(f"{sandbox}/files/stat", GET=files.stat),
        _route(f"{sandbox}/files/list", GET=files.list),
        _route(f"{sandbox}/code", POST=code.run),
        _route("/v1/images", GET=shelf.list, POST=shelf.receive),
        _route("/v1/images/prune", POST=shelf.prune),
        _route("/v1/images/{ref}", GET=shelf.get, DELETE=shelf.remove),
        _route("/v1/images/{ref}/export", GET=shelf.export),
        _route("/v1/images/{ref}/verify", POST=shelf.verify),
        _route("/v1/images/{name}/build", POST=shelf.build),
    ]
    made = Starlette(routes=routes, middleware=[Middleware(Authenticated)], exception_handlers=HANDLERS)
    made.router.redirect_slashes = False
    return made


class _Resource:
    """One path: its methods, each an async function that returns a response."""

    def __init__(self, handlers: dict[str, Handler]) -> None:
        self._handlers = handlers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = await self._handlers[scope["method"]](Request(scope, receive, send))
        await response(scope, receive, send)


def _route(path: str, **handlers: Handler) -> Route:
    # Starlette takes GET to imply HEAD, which would read a file or kill for nothing
    route = Route(path, _Resource(handlers), methods=list(handlers))
    route.methods = set(handlers)
    return route
