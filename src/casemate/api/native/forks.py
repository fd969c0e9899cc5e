"""``/v1/sandboxes/{ref}/fork`` and ``/snapshot``: a sandbox's present moment, as running copies or as an image."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Protocol

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp

from casemate.api.auth import Principal, principal
from casemate.api.native.news import Progress, with_news
from casemate.api.native.operations import JSON, NDJSON, operation
from casemate.api.native.requests import Body, read_body
from casemate.api.native.sandboxes import SandboxOut, said, shown
from casemate.api.native.snapshots import SnapshotOut
from casemate.api.native.streams import Lines, lines, while_wanted
from casemate.errors import Forbidden
from casemate.sandbox import Handle, Reason, Sandboxes

MAKES_SNAPSHOTS = "snapshots:write"
Fork = Callable[..., Awaitable[Sequence[Handle]]]


class Keeper(Protocol):
    """Makes a version of an image of a sandbox: ``build.Images``."""

    async def keep(
        self, tenant: str, ref: str, name: str, tag: str | None, *, sandboxes: Sandboxes, actor: str
    ) -> dict[str, Any]: ...


class ForkSandbox(Body):
    """*labels*: of the copies, beside those of the sandbox; of two with one name these count."""

    count: int = 1
    labels: dict[str, str] | None = None
    progress: bool = False


class ForkedSandboxes(BaseModel):
    sandboxes: list[SandboxOut]


class SnapshotSandbox(Body):
    name: str
    tag: str | None = None


class SnapshotTakenOut(SnapshotOut):
    """The version. For *pause_ms* the sandbox stood still, for *frozen_ms* its programs did."""

    pause_ms: float
    frozen_ms: float
    took_ms: float


class Forks:
    """A client that goes away before it was answered has made nothing: neither copies nor a version."""

    def __init__(self, sandboxes: Sandboxes, keeper: Keeper) -> None:
        self._sandboxes = sandboxes
        self._keeper = keeper

    @operation(
        "Make running copies of a sandbox as it is at this moment: all of them or none",
        body=ForkSandbox,
        answer=ForkedSandboxes,
        status=201,
        gives=(JSON, NDJSON),
    )
    async def fork(self, request: Request) -> Response | ASGIApp:
        body = await read_body(request, ForkSandbox)
        who, ref = principal(request), request.path_params["ref"]
        fork: Fork = partial(self._sandboxes.fork, who.tenant, ref, body.count, actor=who.key_id, labels=body.labels)
        if body.progress:
            return lines(partial(_fork_told, fork), status=201)
        copies = await while_wanted(request, fork)
        if copies is None:  # its client went away meanwhile; fork has ended what it had made
            return Response(status_code=400)
        return said(_shown(copies), 201)

    @operation(
        "Keep a sandbox as it is at this moment as a version of an image",
        body=SnapshotSandbox,
        answer=SnapshotTakenOut,
        status=201,
    )
    async def snapshot(self, request: Request) -> Response:
        body = await read_body(request, SnapshotSandbox)
        who, ref = principal(request), request.path_params["ref"]
        _check_may_make_snapshots(who)
        keep = partial(
            self._keeper.keep, who.tenant, ref, body.name, body.tag, sandboxes=self._sandboxes, actor=who.key_id
        )
        kept = await while_wanted(request, keep)
        return Response(status_code=400) if kept is None else JSONResponse(kept, 201)


async def _fork_told(fork: Fork, out: Lines) -> None:
    """News come before the copies; a client that leaves before it was told of them leaves none behind."""
    copies: list[Handle] = []

    async def fork_and_tell(progress: Progress) -> None:
        copies.extend(await fork(on_progress=progress))

    try:
        await with_news(out, fork_and_tell)
        await out.put(_shown(copies).model_dump_json().encode() + b"\n")
    except BaseException:
        for copy in copies:
            copy.ask_stop(Reason.KILLED, "its client went away")
        raise


def _shown(copies: Sequence[Handle]) -> ForkedSandboxes:
    return ForkedSandboxes(sandboxes=[shown(copy.info) for copy in copies])


def _check_may_make_snapshots(who: Principal) -> None:
    """It takes room on the disk for good, and changes what its name means: to use sandboxes is not enough for that."""
    if not who.may(MAKES_SNAPSHOTS):
        raise Forbidden(f"to make a snapshot takes the scope {MAKES_SNAPSHOTS} too")
