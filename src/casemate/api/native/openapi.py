"""The OpenAPI 3.1 document, made of the routes and what their handlers declare.

``docs/openapi.json`` is written by ``tools/generate_openapi.py``; a test fails when it is stale.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.routing import BaseRoute, Route

import casemate
from casemate import errors
from casemate.api.errors import MEDIA_TYPE
from casemate.api.native.operations import JSON, Operation, find_operation
from casemate.api.principal import is_local_only, scope_of

REF = "#/components/schemas/{model}"
IDEMPOTENCY = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "Done once; the same request with the same key is answered with the first answer, for 24 hours.",
    "schema": {"type": "string", "maxLength": 255},
}
Json = dict[str, Any]


class Problem(BaseModel):
    """Problem details (RFC 9457) with Casemate's own members."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    hint: str
    retry: str
    evidence: dict[str, Any]
    instance: str | None = None


def document(routes: Iterable[BaseRoute]) -> Json:
    """The document of these routes; WebSockets have no place in OpenAPI."""
    found = list(_operations(routes))
    models = {m for _, _, op in found for m in (op.body, op.answer) if m is not None} | {Problem}
    schemas = _schemas(models)
    paths: dict[str, Json] = {}
    for path, method, op in found:
        paths.setdefault(path, {})[method.lower()] = _described(path, method, op)
    schemas["Problem"]["properties"]["code"]["enum"] = sorted({kind.code for kind in errors.every_error()})
    return {
        "openapi": "3.1.0",
        "info": {"title": "Casemate", "version": casemate.__version__, "license": {"name": "Apache-2.0"}},
        "security": [{"key": []}],
        "paths": dict(sorted(paths.items())),
        "components": {
            "schemas": dict(sorted(schemas.items())),
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer", "description": "cm_<id>_<secret>; none on a unix socket"}
            },
        },
    }


def text_of(document: Mapping[str, Any]) -> str:
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def handlers_of(route: Route) -> Mapping[str, Callable[..., Any]]:
    """The handlers of a path by method."""
    found: Mapping[str, Callable[..., Any]] = getattr(route.endpoint, "handlers", {})
    return found


def _operations(routes: Iterable[BaseRoute]) -> Iterable[tuple[str, str, Operation]]:
    for route in routes:
        if isinstance(route, Route):
            for method, handler in handlers_of(route).items():
                yield route.path, method, find_operation(handler) or Operation(f"{method} {route.path}")


def _schemas(models: set[type[BaseModel]]) -> dict[str, Json]:
    ordered = sorted(models, key=lambda model: model.__name__)
    _, made = models_json_schema([(model, "validation") for model in ordered], ref_template=REF)
    schemas: dict[str, Json] = made["$defs"]
    return schemas


def _described(path: str, method: str, op: Operation) -> Json:
    scope = scope_of(method, path)
    where = "The daemon's unix socket only." if is_local_only(path) else f"Scope: {scope or 'any key'}."
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"{(\w+)(?::\w+)?}", path)
    ]
    parameters += _query(op.query) if op.query else []
    parameters += [IDEMPOTENCY] if method == "POST" and op.takes is None else []
    said: Json = {"summary": op.summary, "description": where, "operationId": _named(method, path)}
    if parameters:
        said["parameters"] = parameters
    if op.body is not None:
        said["requestBody"] = {"content": {JSON: {"schema": _ref(op.body)}}}
    elif op.takes is not None:
        said["requestBody"] = {"content": {op.takes: {}}}
    said["responses"] = {
        str(op.status): {"description": op.summary, "content": {media: _content(media, op) for media in op.gives}},
        "default": {"description": "What went wrong", "content": {MEDIA_TYPE: {"schema": _ref(Problem)}}},
    }
    return said


def _content(media: str, op: Operation) -> Json:
    return {"schema": _ref(op.answer)} if media == JSON and op.answer is not None else {}


def _query(model: type[BaseModel]) -> list[Json]:
    schema = model.model_json_schema(ref_template=REF)
    required = schema.get("required", [])
    return [
        {"name": name, "in": "query", "required": name in required, "schema": field}
        for name, field in schema.get("properties", {}).items()
    ]


def _ref(model: type[BaseModel]) -> Json:
    return {"$ref": REF.format(model=model.__name__)}


def _named(method: str, path: str) -> str:
    words = re.findall(r"[a-z_]+", path.removeprefix("/v1/"))
    return "_".join([method.lower(), *words])
