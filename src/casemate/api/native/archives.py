"""``/v1/sandboxes/{ref}/files/archive``: a folder as tar, out (GET) and in (PUT). Nothing of it is unpacked here."""

from __future__ import annotations

from functools import partial

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp

from casemate.api.native.files import PathQuery
from casemate.api.native.operations import operation
from casemate.api.native.requests import find_handle, read_query, using
from casemate.api.native.streams import Out, octets
from casemate.api.reading import pieces
from casemate.sandbox import Handle, Sandboxes, archives

TAR = "application/x-tar"


class Unpacked(BaseModel):
    path: str
    members: int
    size: int


class Archives:
    def __init__(self, sandboxes: Sandboxes) -> None:
        self._sandboxes = sandboxes

    @operation("Read a folder as tar", query=PathQuery, gives=(TAR,))
    async def read(self, request: Request) -> ASGIApp:
        query = read_query(request, PathQuery)
        send = partial(_send, find_handle(request, self._sandboxes), query)
        return octets(send, media_type=TAR)

    @operation("Unpack a tar into a folder", query=PathQuery, answer=Unpacked, takes=TAR)
    async def write(self, request: Request) -> Response:
        query = read_query(request, PathQuery)
        async with using(find_handle(request, self._sandboxes)) as link:
            members, size = await archives.unpack(link, query.path, pieces(request), user=query.user)
        return JSONResponse({"path": query.path, "members": members, "size": size})


async def _send(handle: Handle, query: PathQuery, out: Out) -> None:
    async with using(handle) as link, archives.open_pack(link, query.path, user=query.user) as folder:
        while (piece := await folder.read()) is not None:
            await out.put(piece)
