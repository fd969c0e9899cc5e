"""All routes of ``/v1``, one path with all its methods at a time.

A new route is one line here, and ``@operation(…)`` on its handler; ``api/principal.py`` has the scope its path needs.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from casemate.api.auth import Authenticated, Doors
from casemate.api.errors import HANDLERS
from casemate.api.idempotency import Idempotent
from casemate.api.keys import Keys
from casemate.api.native.archives import Archives
from casemate.api.native.code import Code
from casemate.api.native.contexts import Contexts
from casemate.api.native.events import Events
from casemate.api.native.execs import Execs
from casemate.api.native.files import Files
from casemate.api.native.forks import Forks, Keeper
from casemate.api.native.images import Images, ImageService
from casemate.api.native.keys import KeyResource
from casemate.api.native.lives import Lives
from casemate.api.native.logs import Logs
from casemate.api.native.openapi import document
from casemate.api.native.operations import operation
from casemate.api.native.pools import PoolResource, ShapeService
from casemate.api.native.ports import Ports
from casemate.api.native.sandboxes import SandboxResource
from casemate.api.native.snapshots import KeptService, Snapshots
from casemate.api.native.sockets import served
from casemate.api.native.stats import StatsResource
from casemate.api.native.terminals import Terminals
from casemate.audit import Trail
from casemate.config import Found
from casemate.sandbox import Sandboxes

Answer = Response | ASGIApp
Handler = Callable[[Request], Awaitable[Answer]]
Health = Callable[[], dict[str, Any]]


def app(
    sandboxes: Sandboxes,
    images: Shelf,
    health: Health,
    doors: Doors,
    trail: Trail,
    settings: Sequence[Found] = (),
) -> Starlette:
    """The ASGI app over these services; it owns none of them. *settings* are what the daemon runs with."""
    made = Starlette(
        routes=_routes(sandboxes, images, About(health, settings), doors.keys, trail),
        middleware=[
            Middleware(Authenticated, doors),
            Middleware(Idempotent, trail.database, trail.host_id),
        ],
        exception_handlers=HANDLERS,
    )
    made.router.redirect_slashes = False
    return made


def routes_only() -> list[BaseRoute]:
    """The routes with nothing behind them, for who only reads what is declared on them."""
    nothing = cast(Any, None)
    return _routes(nothing, nothing, About(nothing), nothing, nothing)


def _routes(sandboxes: Sandboxes, images: Shelf, about: About, keys: Keys, trail: Trail) -> list[BaseRoute]:
    boxes, execs, files = SandboxResource(sandboxes), Execs(sandboxes), Files(sandboxes)
    archives, ports, logs, terminals = Archives(sandboxes), Ports(sandboxes), Logs(sandboxes), Terminals(sandboxes)
    code, contexts, shelf, ring = Code(sandboxes), Contexts(sandboxes), Images(images), KeyResource(keys)
    events, stats, lives, pools = (
        Events(trail),
        StatsResource(sandboxes),
        Lives(sandboxes),
        PoolResource(sandboxes, images),
    )
    kept = Snapshots(images)
    forks = Forks(sandboxes, images)
    sandbox = "/v1/sandboxes/{ref}"
    routes: list[BaseRoute] = [
        _route("/v1/health", GET=about.health),
        _route("/v1/config", GET=about.settings),
        _route("/v1/openapi.json", GET=about.openapi),
        _route("/v1/sandboxes", GET=boxes.list, POST=boxes.create),
        _route(sandbox, GET=boxes.get, DELETE=boxes.kill),
        _route(f"{sandbox}/stats", GET=stats.get),
        _route(f"{sandbox}/suspend", POST=lives.suspend),
        _route(f"{sandbox}/resume", POST=lives.resume),
        _route(f"{sandbox}/keep-alive", POST=lives.keep_alive),
        _route(f"{sandbox}/fork", POST=forks.fork),
        _route(f"{sandbox}/snapshot", POST=forks.snapshot),
        _route(f"{sandbox}/execs", GET=execs.list, POST=execs.start),
        _route(f"{sandbox}/execs/{{exec_id}}/output", GET=execs.output),
        _route(f"{sandbox}/execs/{{exec_id}}/stdin", POST=execs.stdin),
        _route(f"{sandbox}/execs/{{exec_id}}/signal", POST=execs.signal),
        _route(f"{sandbox}/execs/{{exec_id}}", DELETE=execs.remove),
        WebSocketRoute(f"{sandbox}/terminal", served(terminals.start)),
        WebSocketRoute(f"{sandbox}/execs/{{exec_id}}/terminal", served(terminals.attach)),
        _route(f"{sandbox}/files", GET=files.read, PUT=files.write, DELETE=files.remove),
        _route(f"{sandbox}/files/stat", GET=files.stat),
        _route(f"{sandbox}/files/list", GET=files.list),
        _route(f"{sandbox}/files/archive", GET=archives.read, PUT=archives.write),
        _route(f"{sandbox}/files/mkdir", POST=files.make_folder),
        _route(f"{sandbox}/files/move", POST=files.move),
        _route(f"{sandbox}/ports", GET=ports.list),
        WebSocketRoute(f"{sandbox}/ports/{{port}}", served(ports.connect)),
        _route(f"{sandbox}/logs", GET=logs.read),
        _route(f"{sandbox}/code", POST=code.run),
        WebSocketRoute(f"{sandbox}/code", served(code.run_on_socket)),
        _route(f"{sandbox}/cells", GET=code.list),
        _route(f"{sandbox}/cells/{{cell_id}}", GET=code.join, DELETE=code.interrupt),
        _route(f"{sandbox}/cells/{{cell_id}}/alive", POST=code.alive),
        _route(f"{sandbox}/contexts", GET=contexts.list, POST=contexts.create),
        _route(f"{sandbox}/contexts/{{context_id}}", GET=contexts.get, DELETE=contexts.remove),
        _route(f"{sandbox}/contexts/{{context_id}}/restart", POST=contexts.restart),
        _route(f"{sandbox}/contexts/{{context_id}}/interrupt", POST=contexts.interrupt),
        _route(f"{sandbox}/contexts/{{context_id}}/complete", POST=contexts.complete),
        _route(f"{sandbox}/contexts/{{context_id}}/inspect", POST=contexts.inspect),
        _route("/v1/images", GET=shelf.list, POST=shelf.receive),
        _route("/v1/images/prune", POST=shelf.prune),
        _route("/v1/images/{ref}", GET=shelf.get, DELETE=shelf.remove),
        _route("/v1/images/{ref}/export", GET=shelf.export),
        _route("/v1/images/{ref}/verify", POST=shelf.verify),
        _route("/v1/images/{name}/build", POST=shelf.build),
        _route("/v1/snapshots", GET=kept.list),
        _route("/v1/snapshots/import", POST=kept.receive),
        _route("/v1/snapshots/prune", POST=kept.prune),
        _route("/v1/snapshots/{ref}", GET=kept.get, DELETE=kept.remove),
        _route("/v1/snapshots/{ref}/export", GET=kept.export),
        _route("/v1/pools", GET=pools.list, PUT=pools.put),
        _route("/v1/pools/{ref}", GET=pools.get, DELETE=pools.remove),
        _route("/metrics", GET=pools.metrics),
        _route("/v1/events", GET=events.list),
        _route("/v1/audit", GET=events.verify),
        _route("/v1/keys", GET=ring.list, POST=ring.create),
        _route("/v1/keys/{key_id}", DELETE=ring.revoke),
    ]
    about.routes = routes
    return routes


class Shelf(ImageService, KeptService, ShapeService, Keeper, Protocol):
    """Images, and what was kept of sandboxes: ``build.Images``."""


class About:
    """The daemon about itself."""

    def __init__(self, health: Health, settings: Sequence[Found] = ()) -> None:
        self.routes: list[BaseRoute] = []
        self._health = health
        self._settings = settings
        self._document: dict[str, Any] | None = None

    @operation("Say how the daemon is")
    async def health(self, request: Request) -> Response:
        return JSONResponse(self._health())

    @operation("Show what settings the daemon runs with, and where each is from")
    async def settings(self, request: Request) -> Response:
        return JSONResponse({"settings": [found.to_json() for found in self._settings]})

    @operation("This document")
    async def openapi(self, request: Request) -> Response:
        if self._document is None:
            self._document = document(self.routes)
        return JSONResponse(self._document)


@dataclass(frozen=True, slots=True)
class _Resource:
    """One path: its methods, each an async function that returns a response."""

    handlers: dict[str, Handler]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = await self.handlers[scope["method"]](Request(scope, receive, send))
        await response(scope, receive, send)


def _route(path: str, **handlers: Handler) -> Route:
    # Starlette takes GET to imply HEAD, which would read a file or kill for nothing
    route = Route(path, _Resource(handlers), methods=list(handlers))
    route.methods = set(handlers)
    return route
