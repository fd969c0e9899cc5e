"""``/v1/images``: list, inspect, build, verify, remove, prune; out and in as one tar."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractAsyncContextManager, aclosing
from functools import partial
from typing import Any, Protocol

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp

from casemate.api.auth import principal
from casemate.api.native.news import Progress, with_news
from casemate.api.native.requests import Body, Query, read_body, read_query
from casemate.api.native.streams import Lines, Out, lines, octets


class ImageService(Protocol):
    """What is served here: ``build.Images``."""

    async def list(self, tenant: str) -> list[dict[str, Any]]: ...

    async def get(self, tenant: str, ref: str) -> dict[str, Any]: ...

    async def build(self, tenant: str, name: str, force: bool, progress: Progress) -> dict[str, Any]: ...

    async def verify(self, tenant: str, ref: str, progress: Progress) -> dict[str, Any]: ...

    async def remove(self, tenant: str, ref: str, force: bool) -> dict[str, Any]: ...

    async def prune(self, tenant: str, dry_run: bool) -> dict[str, Any]: ...

    def export(self, tenant: str, ref: str) -> AbstractAsyncContextManager[tuple[int, AsyncIterator[bytes]]]: ...

    async def receive(self, tenant: str, name: str | None, pieces: AsyncIterator[bytes]) -> dict[str, Any]: ...


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

    async def list(self, request: Request) -> Response:
        return JSONResponse({"images": await self._images.list(principal(request).tenant)})

    async def get(self, request: Request) -> Response:
        return JSONResponse(await self._images.get(principal(request).tenant, request.path_params["ref"]))

    async def build(self, request: Request) -> ASGIApp:
        body = await read_body(request, BuildImage)
        tenant, name = principal(request).tenant, request.path_params["name"]
        return lines(partial(self._build, tenant, name, body.force))

    async def _build(self, tenant: str, name: str, force: bool, out: Lines) -> None:
        image = await with_news(out, partial(self._images.build, tenant, name, force))
        await out.say({"event": "end", "image": image})

    async def verify(self, request: Request) -> ASGIApp:
        await read_body(request, Body)
        return lines(partial(self._verify, principal(request).tenant, request.path_params["ref"]))

    async def _verify(self, tenant: str, ref: str, out: Lines) -> None:
        report = await with_news(out, partial(self._images.verify, tenant, ref))
        await out.say({"event": "end", "report": report})

    async def remove(self, request: Request) -> Response:
        query = read_query(request, RemoveQuery)
        tenant, ref = principal(request).tenant, request.path_params["ref"]
        return JSONResponse(await self._images.remove(tenant, ref, query.force))

    async def prune(self, request: Request) -> Response:
        body = await read_body(request, Prune)
        return JSONResponse(await self._images.prune(principal(request).tenant, body.dry_run))

    async def export(self, request: Request) -> ASGIApp:
        return octets(partial(self._export, principal(request).tenant, request.path_params["ref"]))

    async def _export(self, tenant: str, ref: str, out: Out) -> None:
        async with self._images.export(tenant, ref) as (size_bytes, pieces):
            out.will_have(size_bytes)
            async for piece in pieces:
                if piece:
                    await out.put(piece)

    async def receive(self, request: Request) -> Response:
        query = read_query(request, ImportQuery)
        async with aclosing(_pieces(request)) as pieces:
            image = await self._images.receive(principal(request).tenant, query.name, pieces)
        return JSONResponse(image, 201)


async def _pieces(request: Request) -> AsyncGenerator[bytes, None]:
    """The body as it comes. A client that leaves ends it: what was sent is then half a bundle, and refused as that."""
    try:
        async for piece in request.stream():
            if piece:
                yield piece
    except ClientDisconnect:
        return
