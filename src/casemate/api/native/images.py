"""``/v1/images``: list, inspect, build."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol

import anyio
from pydantic import BaseModel, ConfigDict
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp

from casemate.api.auth import principal
from casemate.api.native.operations import NDJSON, operation
from casemate.api.native.paging import LabelledQuery, Place, page
from casemate.api.native.requests import Body, read_body, read_query
from casemate.api.native.streams import Lines, lines

NEWS_KEPT = 256  # of a build whose client does not read; the oldest go first


class ImageService(Protocol):
    """What is served here: ``build.Images``."""

    async def list(self, tenant: str) -> list[dict[str, Any]]: ...

    async def get(self, tenant: str, ref: str) -> dict[str, Any]: ...

    async def build(
        self, tenant: str, name: str, force: bool, progress: Callable[[str, str, float | None], None]
    ) -> dict[str, Any]: ...


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


def _place(image: Mapping[str, Any]) -> Place:
    return image["name"], image["version"]


def _labels(image: Mapping[str, Any]) -> Mapping[str, str]:
    found = image.get("labels")
    return found if isinstance(found, dict) else {}
