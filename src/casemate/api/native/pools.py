"""``/v1/pools``: how many ready sandboxes there are to be of what; and ``/metrics``, what they and all others did."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from casemate.api.auth import principal
from casemate.api.native.operations import operation
from casemate.api.native.paging import PageQuery, page
from casemate.api.native.requests import Body, read_body, read_query
from casemate.api.principal import Principal
from casemate.errors import Forbidden
from casemate.sandbox import SHARED, PoolSpec, Sandboxes, Shape

TEXT = "text/plain"
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class SetPool(Body):
    """The pool of that image, shape and network gets these numbers. *shared*: for every tenant."""

    image: str
    min_ready: int
    max_ready: int | None = None
    target_utilization: float = 0.7
    vcpus: int | None = None
    memory_mib: int | None = None
    disk_mib: int | None = None
    network: str = "none"
    schedule: str | None = None
    shared: bool = False


class MeasuredOut(BaseModel):
    """Of the newest 1000."""

    p50_ms: float | None
    p95_ms: float | None


COUNTED = (
    *("making", "claimed", "in_use", "hits", "misses", "died"),
    *("refill_failures", "refill", "claim", "failure"),
)


class PoolOut(BaseModel):
    """A pool as it is; what is counted is counted since the daemon started.

    Of one that is for everybody the host's owner alone is told what was counted: it is what other tenants did.
    """

    id: str
    tenant: str
    image: str
    version: str | None
    vcpus: int
    memory_mib: int
    disk_mib: int
    network: str
    min_ready: int
    max_ready: int | None
    target_utilization: float
    schedule: str | None
    origin: str
    created_at: float
    wanted: int
    ready: int
    making: int | None
    claimed: int | None
    in_use: int | None
    hits: int | None
    misses: dict[str, int] | None
    died: int | None
    refill_failures: int | None
    refill: MeasuredOut | None
    claim: MeasuredOut | None
    failure: str | None


class PoolList(BaseModel):
    pools: list[PoolOut]
    next: str | None


class ShapeService(Protocol):
    """Knows what shape an image has where none is asked for: ``build.Images``."""

    async def shape_for(
        self, tenant: str, ref: str, vcpus: int | None, memory_mib: int | None, disk_mib: int | None
    ) -> Shape: ...


class PoolResource:
    def __init__(self, sandboxes: Sandboxes, shelf: ShapeService) -> None:
        self._sandboxes = sandboxes
        self._shelf = shelf

    @operation("Keep sandboxes of an image ready, or change how many", body=SetPool, answer=PoolOut)
    async def put(self, request: Request) -> Response:
        body, who = await read_body(request, SetPool), principal(request)
        if body.shared and not who.is_owner:
            raise Forbidden("only the host's owner may keep a pool for everybody")
        tenant = SHARED if body.shared else who.tenant
        spec = PoolSpec(
            image=body.image,
            shape=await self._shelf.shape_for(tenant, body.image, body.vcpus, body.memory_mib, body.disk_mib),
            min_ready=body.min_ready,
            max_ready=body.max_ready,
            target_utilization=body.target_utilization,
            network=body.network,
            schedule=body.schedule,
        )
        return _said(_shown(await self._sandboxes.pools.put(tenant, spec, actor=who.key_id), who))

    @operation("List the pools, oldest first", query=PageQuery, answer=PoolList)
    async def list(self, request: Request) -> Response:
        query, who = read_query(request, PageQuery), principal(request)
        found = [_shown(pool, who) for pool in self._sandboxes.pools.listed(who.tenant)]
        listed, following = page(found, query, lambda pool: (pool.created_at, pool.id))
        return _said(PoolList(pools=listed, next=following))

    @operation("Show a pool", answer=PoolOut)
    async def get(self, request: Request) -> Response:
        who = principal(request)
        return _said(_shown(self._sandboxes.pools.get(who.tenant, request.path_params["ref"]), who))

    @operation("Remove a pool; its ready sandboxes are ended, those in use live on", answer=PoolOut)
    async def remove(self, request: Request) -> Response:
        who, ref = principal(request), request.path_params["ref"]
        gone = await self._sandboxes.pools.remove(who.tenant, ref, shared=who.is_owner, actor=who.key_id)
        return _said(_shown(gone, who))

    @operation("What sandboxes and pools did, in Prometheus' text format", gives=(TEXT,))
    async def metrics(self, request: Request) -> Response:
        if not principal(request).is_owner:
            raise Forbidden("only the host's owner may see what all tenants did")
        return Response(self._sandboxes.meters.text(), media_type=METRICS_TYPE)


def _shown(pool: Mapping[str, Any], who: Principal) -> PoolOut:
    hidden = COUNTED if pool["tenant"] == SHARED and not who.is_owner else ()
    return PoolOut.model_validate({**pool, **dict.fromkeys(hidden)})


def _said(body: BaseModel) -> Response:
    return Response(body.model_dump_json(), media_type="application/json")
