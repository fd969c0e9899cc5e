"""The fake daemon's ``/v1/snapshots``: one that is there, one that is used, and a bundle."""

from __future__ import annotations

import hashlib
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from casemate import errors

BUNDLE = b"a snapshot" * 200_000
DIGEST = hashlib.sha256(BUNDLE).hexdigest()
WORK: dict[str, Any] = {
    "name": "work",
    "version": 3,
    "tag": "good",
    "state": "ready",
    "active": True,
    "parent": "python@1",
    "created_at": 1.7e9,
    "own_bytes": 100 * 2**20,
    "users": [],
}
USERS = [{"kind": "sandbox", "id": "a" * 26, "name": name, "state": "running"} for name in ("alpha", None)]


async def listed(request: Request) -> Response:
    older = WORK | {"version": 2, "tag": None, "active": False, "users": USERS}
    return JSONResponse({"snapshots": [older, WORK], "next": None})


async def one(request: Request) -> Response:
    ref = request.path_params["ref"]
    if not ref.startswith("work"):
        raise errors.NotFound(f"there is no snapshot {ref!r}", hint="casemate snapshots ls")
    if request.method == "DELETE":
        if ref == "work@2":
            raise errors.StateConflict("image work@2 is in use by 1 sandbox: alpha", hint="casemate kill alpha")
        return JSONResponse({"dry_run": False, "removed": [], "size_bytes": 100 * 2**20})
    return JSONResponse(WORK | {"misfits": [], "broken": None})


async def export(request: Request) -> Response:
    whole = request.query_params.get("base") != "0"
    return Response(BUNDLE if whole else BUNDLE[:10], media_type="application/octet-stream")


async def receive(request: Request) -> Response:
    if hashlib.sha256(await request.body()).hexdigest() != request.query_params["sha256"]:
        raise errors.InvalidSpec("its sha256 is another", hint="ask who exported it")
    return JSONResponse(WORK | {"name": request.query_params.get("name", "work"), "version": 4}, 201)


async def prune(request: Request) -> Response:
    item = {"kind": "version", "name": "work@1", "why": "it failed", "size_bytes": 2**20}
    return JSONResponse({"dry_run": (await request.json())["dry_run"], "removed": [item], "size_bytes": 2**20})


ROUTES = [
    Route("/v1/snapshots", listed),
    Route("/v1/snapshots/import", receive, methods=["POST"]),
    Route("/v1/snapshots/prune", prune, methods=["POST"]),
    Route("/v1/snapshots/{ref}", one, methods=["GET", "DELETE"]),
    Route("/v1/snapshots/{ref}/export", export),
]
