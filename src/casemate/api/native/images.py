"""``/v1/images``: list, inspect, build, verify, remove, prune; out and in as one tar."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, aclosing
from functools import partial
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp

from casemate.api.auth import principal
from casemate.api.native.news import Progress, with_news
from casemate.api.native.operations import NDJSON, OCTETS, operation
from casemate.api.native.paging import LabelledQuery, Place, page
from casemate.api.native.requests import Body, Query, read_body, read_query
from casemate.api.native.streams import Lines, Out, lines, octets
from casemate.api.reading import pieces as timely


class ImageService(Protocol):
    """What is served here: ``build.Images``."""

    async def list(self, tenant: str) -> list[dict[str, Any]]: ...

    async def get(self, tenant: str, ref: str) -> dict[str, Any]: ...

    async def build(self, tenant: str, name: str, force: bool, progress: Progress) -> dict[str, Any]: ...

    async def verify(self, tenant: str, ref: str, progress: Progress) -> dict[str, Any]: ...

    async def remove(self, tenant: str, ref: str, force: bool, *, actor: str) -> dict[str, Any]: ...

    async def prune(self, tenant: str, dry_run: bool) -> dict[str, Any]: ...

    def export(self, tenant: str, ref: str) -> AbstractAsyncContextManager[tuple[int, AsyncIterator[bytes]]]: ...

    async def receive(self, tenant: str, name: str | None, pieces: AsyncIterator[bytes]) -> dict[str, Any]: ...


class ImageOut(BaseModel):
    """A version of an image; *labels* are those of its configuration."""

    model_config = ConfigDict(extra="allow")

    name: str
    version: int
    state: str
    active: bool
    size_bytes: int
    created_at: float
    snapshots: list[dict[str, Any]]


class ImageList(BaseModel):
    images: list[ImageOut]
    next: str | None


class BuildImage(Body):
    force: bool = False


class Prune(Body):
    dry_run: bool = False


class RemoveQuery(Query):
    force: bool = False


class ImportQuery(Query):
    name: str | None = None


class Images:
    def __init__(self, images: ImageService) -> None:
        self._images = images

    @operation("List the images", query=LabelledQuery, answer=ImageList)
    async def list(self, request: Request) -> Response:
        query = read_query(request, LabelledQuery)
        found = await self._images.list(principal(request).tenant)
        wanted = [image for image in found if query.matches(_labels(image))]
        wanted.sort(key=_place)
        shown, following = page(wanted, query, _place)
        return JSONResponse({"images": shown, "next": following})

    @operation("Show one version of an image whole", answer=ImageOut)
    async def get(self, request: Request) -> Response:
        return JSONResponse(await self._images.get(principal(request).tenant, request.path_params["ref"]))

    @operation("Make an image usable, unless it is", body=BuildImage, gives=(NDJSON,))
    async def build(self, request: Request) -> ASGIApp:
        body = await read_body(request, BuildImage)
        tenant, name = principal(request).tenant, request.path_params["name"]
        return lines(partial(self._build, tenant, name, body.force))

    async def _build(self, tenant: str, name: str, force: bool, out: Lines) -> None:
        image = await with_news(out, partial(self._images.build, tenant, name, force))
        await out.say({"event": "end", "image": image})

    @operation("Hash all files of an image again", body=Body, gives=(NDJSON,))
    async def verify(self, request: Request) -> ASGIApp:
        await read_body(request, Body)
        return lines(partial(self._verify, principal(request).tenant, request.path_params["ref"]))

    async def _verify(self, tenant: str, ref: str, out: Lines) -> None:
        report = await with_news(out, partial(self._images.verify, tenant, ref))
        await out.say({"event": "end", "report": report})

    @operation("Remove a version of an image", query=RemoveQuery)
    async def remove(self, request: Request) -> Response:
        query = read_query(request, RemoveQuery)
        who, ref = principal(request), request.path_params["ref"]
        return JSONResponse(await self._images.remove(who.tenant, ref, query.force, actor=who.key_id))

    @operation("Remove what nothing needs", body=Prune)
    async def prune(self, request: Request) -> Response:
        body = await read_body(request, Prune)
        return JSONResponse(await self._images.prune(principal(request).tenant, body.dry_run))

    @operation("Export an image as one tar", gives=(OCTETS,))
    async def export(self, request: Request) -> ASGIApp:
        return octets(partial(self._export, principal(request).tenant, request.path_params["ref"]))

    async def _export(self, tenant: str, ref: str, out: Out) -> None:
        async with self._images.export(tenant, ref) as (size_bytes, pieces):
            out.will_have(size_bytes)
            async for piece in pieces:
                if piece:
                    await out.put(piece)

    @operation("Import an image that was exported", query=ImportQuery, answer=ImageOut, status=201, takes=OCTETS)
    async def receive(self, request: Request) -> Response:
        query = read_query(request, ImportQuery)
        async with aclosing(pieces_of(request)) as pieces:
            image = await self._images.receive(principal(request).tenant, query.name, pieces)
        return JSONResponse(image, 201)


async def pieces_of(request: Request) -> AsyncGenerator[bytes, None]:
    """The body as it comes. A client that leaves ends it: what was sent is then half a bundle, and refused as that."""
    try:
        async for piece in timely(request):
            if piece:
                yield piece
    except ClientDisconnect:
        return


def _place(image: Mapping[str, Any]) -> Place:
    return image["name"], image["version"]


def _labels(image: Mapping[str, Any]) -> Mapping[str, str]:
    found = image.get("labels")
    return found if isinstance(found, dict) else {}
