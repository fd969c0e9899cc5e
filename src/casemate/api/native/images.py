"""``/v1/images``: list, inspect, build."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import anyio
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp

from casemate.api.auth import principal
from casemate.api.native.requests import Body, read_body
from casemate.api.native.streams import Lines, lines

NEWS_KEPT = 256  # of a build whose client does not read; the oldest go first


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
        news, latest = anyio.create_memory_object_stream[dict[str, Any]](NEWS_KEPT)

        def progress(step: str, message: str, fraction: float | None) -> None:
            if news.statistics().current_buffer_used == NEWS_KEPT:
                latest.receive_nowait()
            news.send_nowait({"event": "progress", "step": step, "message": message, "fraction": fraction})

        async def pass_on() -> None:
            async for line in latest:
                await out.say(line)

        with latest, news:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(pass_on)
                image = await self._images.build(tenant, name, force, progress)
                news.close()  # what is still in it is passed on before the group ends
        await out.say({"event": "end", "image": image})
