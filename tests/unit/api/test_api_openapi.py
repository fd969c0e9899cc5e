"""The document of the API: complete, current, and what is served."""

import json
from pathlib import Path

from starlette.routing import Route

from casemate import errors
from casemate.api.native.app import routes_only
from casemate.api.native.openapi import document, handlers_of, text_of

GOLDEN = Path(__file__).resolve().parents[3] / "docs" / "openapi.json"


def test_the_golden_file_is_current():
    made = text_of(document(routes_only()))
    assert GOLDEN.read_text() == made, "docs/openapi.json is stale; run: python tools/generate_openapi.py"


def test_every_route_and_reference_is_in_it():
    made = document(routes_only())
    for route in routes_only():
        if isinstance(route, Route):
            assert set(made["paths"][route.path]) == {method.lower() for method in handlers_of(route)}

    def references(part):
        if isinstance(part, dict):
            yield from [part["$ref"]] if "$ref" in part else []
            for value in part.values():
                yield from references(value)
        elif isinstance(part, list):
            for value in part:
                yield from references(value)

    known = {f"#/components/schemas/{name}" for name in made["components"]["schemas"]}
    assert set(references(made)) <= known
    names = [op["operationId"] for path in made["paths"].values() for op in path.values()]
    assert len(names) == len(set(names))
    codes = made["components"]["schemas"]["Problem"]["properties"]["code"]["enum"]
    assert set(codes) == {kind.code for kind in errors.every_error()}


def test_it_is_served(serve):
    async def scenario(world):
        assert (await world.client.get("/v1/openapi.json")).json() == json.loads(GOLDEN.read_text())

    serve(scenario)
