"""``/v1/sandboxes/{ref}/files``: read, write, remove, stat, list. Bytes go straight through."""

from __future__ import annotations

import re
from functools import partial

from pydantic import BaseModel, ConfigDict, Field, field_validator
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp

from casemate.api.native.operations import OCTETS, operation
from casemate.api.native.requests import Query, find_handle, read_query, using
from casemate.api.native.streams import Out, octets
from casemate.api.reading import pieces
from casemate.errors import InvalidSpec
from casemate.sandbox import Handle, Sandboxes, files

_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")
_OCTAL = re.compile("[0-7]{1,5}")


class PathQuery(Query):
    path: str
    user: str | None = None


class ReadQuery(PathQuery):
    offset: int = Field(0, ge=0)
    length: int | None = Field(None, ge=0)


class WriteQuery(PathQuery):
    """*mode* is octal, as chmod takes it."""

    mode: int | None = None
    make_parents: bool = True

    @field_validator("mode", mode="before")
    @classmethod
    def _octal(cls, text: object) -> int:
        if not isinstance(text, str) or not _OCTAL.fullmatch(text) or int(text, 8) > 0o7777:
            raise ValueError("it must be octal, as 0644")
        return int(text, 8)


class RemoveQuery(PathQuery):
    recursive: bool = False


class Written(BaseModel):
    path: str
    size: int


class Acted(BaseModel):
    path: str


class FileOut(BaseModel):
    model_config = ConfigDict(extra="allow")

    name: str


class FileList(BaseModel):
    entries: list[FileOut]


class StatQuery(PathQuery):
    follow: bool = False


class MoveQuery(PathQuery):
    to: str


class Files:
    def __init__(self, sandboxes: Sandboxes) -> None:
        self._sandboxes = sandboxes

    @operation("Read a file", query=ReadQuery, gives=(OCTETS,))
    async def read(self, request: Request) -> ASGIApp:
        query, handle = read_query(request, ReadQuery), find_handle(request, self._sandboxes)
        asked = request.headers.get("range")
        if asked is None:
            return octets(partial(_send, handle, query))
        async with using(handle) as link:
            size = (await files.stat(link, query.path, user=query.user, follow=True)).size
        return _part(handle, query, asked, size)

    @operation("Write a file", query=WriteQuery, answer=Written, takes=OCTETS)
    async def write(self, request: Request) -> Response:
        query = read_query(request, WriteQuery)
        async with using(find_handle(request, self._sandboxes)) as link:
            size = await files.write(
                link,
                query.path,
                pieces(request),
                mode=query.mode,
                user=query.user,
                make_parents=query.make_parents,
            )
        return JSONResponse({"path": query.path, "size": size})

    @operation("Remove a file or a folder", query=RemoveQuery, answer=Acted)
    async def remove(self, request: Request) -> Response:
        query = read_query(request, RemoveQuery)
        async with using(find_handle(request, self._sandboxes)) as link:
            await files.remove(link, query.path, recursive=query.recursive, user=query.user)
        return JSONResponse({"path": query.path})

    @operation("Say what a path is", query=StatQuery, answer=FileOut)
    async def stat(self, request: Request) -> Response:
        query = read_query(request, StatQuery)
        async with using(find_handle(request, self._sandboxes)) as link:
            found = await files.stat(link, query.path, user=query.user, follow=query.follow)
        return JSONResponse(found.to_json())

    @operation("Make a folder", query=PathQuery, answer=Acted)
    async def make_folder(self, request: Request) -> Response:
        query = read_query(request, PathQuery)
        async with using(find_handle(request, self._sandboxes)) as link:
            await files.make_folder(link, query.path, user=query.user)
        return JSONResponse({"path": query.path})

    @operation("Move or rename", query=MoveQuery, answer=Acted)
    async def move(self, request: Request) -> Response:
        query = read_query(request, MoveQuery)
        async with using(find_handle(request, self._sandboxes)) as link:
            await files.move(link, query.path, query.to, user=query.user)
        return JSONResponse({"path": query.to})

    @operation("List a folder", query=PathQuery, answer=FileList)
    async def list(self, request: Request) -> Response:
        query = read_query(request, PathQuery)
        async with using(find_handle(request, self._sandboxes)) as link:
            found = await files.listed(link, query.path, user=query.user)
        return JSONResponse({"entries": [entry.to_json() for entry in found]})


def _part(handle: Handle, query: ReadQuery, asked: str, size: int) -> ASGIApp:
    """One range of bytes. Source: RFC 9110, section 14."""
    match = _RANGE.fullmatch(asked)
    if match is None or not any(match.groups()) or query.offset or query.length is not None:
        raise InvalidSpec(f"range is {asked[:80]!r}", hint="as bytes=0-499, bytes=500- or bytes=-500; without offset")
    first = int(match[1]) if match[1] else max(size - int(match[2]), 0)
    last = min(int(match[2]), size - 1) if match[1] and match[2] else size - 1
    if first > last:
        return Response(status_code=416, headers={"content-range": f"bytes */{size}"})
    wanted = query.model_copy(update={"offset": first, "length": last - first + 1})
    header = f"bytes {first}-{last}/{size}"
    return octets(partial(_send, handle, wanted), status=206, headers={"content-range": header})


async def _send(handle: Handle, query: ReadQuery, out: Out) -> None:
    """Chunked, without a length: what the kernel says of a file's size is not what a read gives (/proc)."""
    opened = partial(files.open_read, user=query.user, offset=query.offset, length=query.length)
    async with using(handle) as link, opened(link, query.path) as file:
        while (piece := await file.read()) is not None:
            await out.put(piece)
