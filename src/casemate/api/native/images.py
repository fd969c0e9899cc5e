"""``/v1/images``: list, inspect, build."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp

from casemate.api.auth import principal
from casemate.api.native.news import with_news
from casemate.api.native.requests import Body, read_body
from casemate.api.native.streams import Lines, lines


class ImageService(Protocol):
    """What is served here: ``build.Images``."""

    async def list(self, tenant: str) -> list[dict[str, Any]]: ...

    async def get(self, tenant: str, ref: str) -> dict[str, Any]: ...

    async def build(
        self, tenant: str, name: str, force: bool, progress: Callable[[str, str, float | None], None]
    ) -> dict[str, Any]: ...


class BuildImage(Body):
    force: bool = False


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
