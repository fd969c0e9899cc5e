"""``/v1/snapshots``: what was kept of sandboxes. List, inspect, remove, prune; out and in as one tar."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, aclosing
from functools import partial
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp

from casemate.api.auth import principal
from casemate.api.native.images import Prune, pieces_of
from casemate.api.native.operations import OCTETS, operation
from casemate.api.native.paging import PageQuery, Place, page
from casemate.api.native.requests import Query, read_body, read_query
from casemate.api.native.streams import Out, octets
from casemate.errors import Forbidden


class SessionService(Protocol):
    """What was kept, as objects: ``build.Sessions``."""

    async def listed(self, tenant: str) -> list[dict[str, Any]]: ...

    async def get(self, tenant: str, ref: str) -> dict[str, Any]: ...

    async def remove(self, tenant: str, ref: str, *, anybodys: bool, actor: str) -> dict[str, Any]: ...

    async def prune(self, tenant: str, *, everybodys: bool, dry_run: bool, actor: str) -> dict[str, Any]: ...


class CarriageService(Protocol):
    """What was kept, on its way: ``build.SessionTransfer``."""

    def export(
        self, tenant: str, ref: str, *, base: bool, actor: str
    ) -> AbstractAsyncContextManager[tuple[int, AsyncIterator[bytes]]]: ...

    async def receive(
        self, tenant: str, name: str | None, sha256: str, pieces: AsyncIterator[bytes], *, actor: str
    ) -> dict[str, Any]: ...


class KeptService(Protocol):
    """Both: ``build.Images``."""

    @property
    def sessions(self) -> SessionService: ...

    @property
    def carriage(self) -> CarriageService: ...


class UserOut(BaseModel):
    """A sandbox, suspended or not, or a pool."""

    kind: str
    id: str
    name: str | None
    state: str | None


class SnapshotOut(BaseModel):
    """A version of an image that was made of a sandbox; *snapshot* is its id, *why* it failed if so.

    *own_bytes* is what it takes on the disk by itself, *shared_bytes* what its image's disks take that others use too.
    """

    model_config = ConfigDict(extra="allow")

    name: str
    version: int
    tag: str | None
    state: str
    why: str | None
    active: bool
    parent: str | None
    contains_session_state: bool
    created_at: float
    snapshot: str | None
    vcpus: int | None
    memory_mib: int | None
    disk_mib: int | None
    last_used_at: float | None
    own_bytes: int
    shared_bytes: int
    size_bytes: int
    artifacts: dict[str, str]
    users: list[UserOut]


class SnapshotWholeOut(SnapshotOut):
    """*misfits*: why it cannot be used on this host; *broken*: what is wrong with its files."""

    misfits: list[str]
    broken: str | None


class SnapshotList(BaseModel):
    snapshots: list[SnapshotOut]
    next: str | None


class ExportQuery(Query):
    base: bool = True


class ImportSnapshotQuery(Query):
    sha256: str
    name: str | None = None


class Snapshots:
    def __init__(self, kept: KeptService) -> None:
        self._kept = kept

    @operation("List the snapshots that were taken of sandboxes", query=PageQuery, answer=SnapshotList)
    async def list(self, request: Request) -> Response:
        query = read_query(request, PageQuery)
        found = await self._kept.sessions.listed(principal(request).tenant)
        shown, following = page(sorted(found, key=_place), query, _place)
        return JSONResponse({"snapshots": shown, "next": following})

    @operation("Show a snapshot whole", answer=SnapshotWholeOut)
    async def get(self, request: Request) -> Response:
        return JSONResponse(await self._kept.sessions.get(principal(request).tenant, request.path_params["ref"]))

    @operation("Remove a snapshot")
    async def remove(self, request: Request) -> Response:
        who, ref = principal(request), request.path_params["ref"]
        remove = partial(self._kept.sessions.remove, anybodys=who.is_owner, actor=who.key_id)
        return JSONResponse(await remove(who.tenant, ref))

    @operation("Remove the snapshots that failed, or that neither a name nor a tag means and nobody uses", body=Prune)
    async def prune(self, request: Request) -> Response:
        body, who = await read_body(request, Prune), principal(request)
        prune = partial(self._kept.sessions.prune, everybodys=who.is_owner, actor=who.key_id)
        return JSONResponse(await prune(who.tenant, dry_run=body.dry_run))

    @operation("Export a snapshot as one tar", query=ExportQuery, gives=(OCTETS,))
    async def export(self, request: Request) -> ASGIApp:
        query, who = read_query(request, ExportQuery), principal(request)
        export = partial(self._kept.carriage.export, base=query.base, actor=who.key_id)
        return octets(partial(_export, export(who.tenant, request.path_params["ref"])))

    @operation(
        "Import a snapshot that was exported", query=ImportSnapshotQuery, answer=SnapshotOut, status=201, takes=OCTETS
    )
    async def receive(self, request: Request) -> Response:
        query, who = read_query(request, ImportSnapshotQuery), principal(request)
        if not who.is_owner:
            raise Forbidden("only the host's owner may import a snapshot: a VMM parses what is in it")
        async with aclosing(pieces_of(request)) as pieces:
            receive = partial(self._kept.carriage.receive, actor=who.key_id)
            return JSONResponse(await receive(who.tenant, query.name, query.sha256, pieces), 201)


async def _export(export: AbstractAsyncContextManager[tuple[int, AsyncIterator[bytes]]], out: Out) -> None:
    async with export as (size_bytes, pieces):
        out.will_have(size_bytes)
        async for piece in pieces:
            if piece:
                await out.put(piece)


def _place(snapshot: Mapping[str, Any]) -> Place:
    return snapshot["name"], snapshot["version"]
