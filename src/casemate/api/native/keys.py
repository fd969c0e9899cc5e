"""``/v1/keys``: API keys, for the daemon's own user on its unix socket."""

from __future__ import annotations

from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import Response

from casemate.api.auth import principal
from casemate.api.keys import Keys
from casemate.api.native.operations import operation
from casemate.api.native.paging import PageQuery, page
from casemate.api.native.requests import Body, read_body, read_query
from casemate.api.principal import EVERYTHING, LOCAL_TENANT
from casemate.storage import KeyRow


class CreateKey(Body):
    name: str = ""
    tenant: str = LOCAL_TENANT
    scopes: list[str] = Field(default_factory=lambda: [EVERYTHING])
    expires_s: float | None = None


class KeyOut(BaseModel):
    id: str
    name: str
    tenant: str
    scopes: list[str]
    created_at: float
    expires_at: float | None
    revoked_at: float | None


class NewKey(KeyOut):
    """*key* is shown this once."""

    key: str


class KeyList(BaseModel):
    keys: list[KeyOut]
    next: str | None


class KeyResource:
    def __init__(self, keys: Keys) -> None:
        self._keys = keys

    @operation("Make an API key; its text is shown this once", body=CreateKey, answer=NewKey, status=201)
    async def create(self, request: Request) -> Response:
        body = await read_body(request, CreateKey)
        row, text = await self._keys.create(
            by=principal(request).key_id,
            tenant=body.tenant,
            name=body.name,
            scopes=body.scopes,
            expires_s=body.expires_s,
        )
        made = NewKey(**shown(row).model_dump(), key=text)
        return Response(made.model_dump_json(), 201, {"cache-control": "no-store"}, "application/json")

    @operation("List the API keys, without their secrets", query=PageQuery, answer=KeyList)
    async def list(self, request: Request) -> Response:
        query = read_query(request, PageQuery)
        found, following = page(self._keys.list(), query, lambda row: (row.created_at, row.id))
        said = KeyList(keys=[shown(row) for row in found], next=following)
        return Response(said.model_dump_json(), media_type="application/json")

    @operation("Revoke an API key, and end what is under way with it", answer=KeyOut)
    async def revoke(self, request: Request) -> Response:
        row = await self._keys.revoke(request.path_params["key_id"], by=principal(request).key_id)
        return Response(shown(row).model_dump_json(), media_type="application/json")


def shown(row: KeyRow) -> KeyOut:
    return KeyOut(
        id=row.id,
        name=row.name,
        tenant=row.tenant,
        scopes=list(row.scopes),
        created_at=row.created_at,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
    )
