"""Another tenant's things are not there: every route of the app is walked with a second tenant's key."""

from typing import Any

import pytest
from starlette.routing import Route, WebSocketRoute
from test_api_keys import ask_for_websocket

from casemate.api.connections import Address
from casemate.api.native.app import routes_only
from casemate.api.native.openapi import handlers_of
from casemate.api.native.operations import find_operation

ROUTES = [
    (method, route.path, find_operation(handler))
    for route in routes_only()
    if isinstance(route, Route)
    for method, handler in handlers_of(route).items()
]
OWNED = [row for row in ROUTES if "{ref}" in row[1]]


def wish(model: Any) -> dict[str, Any]:
    """Just enough of a body or a query to be understood: what must be given, as a word."""
    if model is None:
        return {}
    schema = model.model_json_schema()
    words = {"string": "x", "integer": 1, "number": 1, "boolean": True, "array": ["x"], "object": {}}
    return {name: words.get(schema["properties"][name].get("type"), "x") for name in schema.get("required", [])}


def test_every_route_says_what_it_takes_and_gives():
    missing = [f"{method} {path}" for method, path, declared in ROUTES if declared is None]
    assert not missing, f"put @operation(…) on the handlers of {missing}"


async def walk(world, client, ref, exec_id):
    """The answer of each route about one sandbox or image; killing comes last."""
    found = {}
    for method, path, declared in sorted(OWNED, key=lambda row: (row[0] == "DELETE", row[1])):
        name = "mine" if path.startswith(("/v1/images", "/v1/pools", "/v1/snapshots")) else ref
        url = path.replace("{ref}", name).replace("{exec_id}", exec_id)
        query = wish(declared.query) if declared else {}
        if method in ("POST", "PUT"):
            given = {"content": b"x"} if declared and declared.takes else {"json": wish(declared and declared.body)}
        else:
            given = {}
        answer = await client.request(method, url, params=query, **given)
        found[f"{method} {path}"] = answer
    return found


@pytest.mark.parametrize("by_name", [False, True])
def test_no_route_shows_another_tenants_things(serve, by_name):
    async def scenario(world):
        sandbox = await world.create(name="box")
        exec_id = await world.start(sandbox, "hang", on_disconnect="keep")
        ref = "box" if by_name else sandbox
        async with world.over_tcp(await world.key("mallory", "*")) as client:
            found = await walk(world, client, ref, exec_id)
            assert len(found) == len(OWNED)
            for route, answer in found.items():
                assert answer.status_code == 404, (route, answer.text)
                assert answer.json()["code"] == "not-found", route
                assert sandbox not in answer.text.replace(ref, ""), route
            assert (await client.get("/v1/sandboxes?all=1")).json()["sandboxes"] == []
            seen = (await client.get("/v1/events?after=0")).json()["events"]
            assert {event["tenant"] for event in seen} <= {"mallory"}
        assert world.sandboxes.handles[sandbox].info.state.value == "running"

    serve(scenario)


def test_the_same_walk_finds_ones_own(serve):
    """Or the walk above would prove nothing."""

    async def scenario(world):
        sandbox = await world.create()
        exec_id = await world.start(sandbox, "hang", on_disconnect="keep")
        async with world.over_tcp(await world.key("local", "*")) as client:
            lookups = {
                "GET": [
                    "/v1/sandboxes/{ref}",
                    "/v1/sandboxes/{ref}/execs",
                    "/v1/images/{ref}",
                    "/v1/pools/{ref}",
                    "/v1/snapshots/{ref}",
                ],
                "POST": ["/v1/sandboxes/{ref}/execs/{exec_id}/signal"],
            }
            for method, paths in lookups.items():
                for path in paths:
                    name = sandbox if "sandboxes" in path else "mine"
                    url = path.replace("{ref}", name).replace("{exec_id}", exec_id)
                    answer = await client.request(method, url, json={"signal": "TERM"} if method == "POST" else None)
                    assert answer.status_code == 200, (path, answer.text)

    serve(scenario)


def test_one_name_in_two_tenants_is_two_sandboxes(serve):
    async def scenario(world):
        first = await world.create(name="box")
        async with world.over_tcp(await world.key("alice", "*")) as client:
            second = (await client.post("/v1/sandboxes", json={"name": "box"})).json()["id"]
            assert (await client.get("/v1/sandboxes/box")).json()["id"] == second != first
            assert [s["id"] for s in (await client.get("/v1/sandboxes")).json()["sandboxes"]] == [second]

    serve(scenario)


def test_no_websocket_opens_for_another_tenant(serve):
    async def scenario(world):
        sandbox = await world.create()
        key = await world.key("mallory", "*")
        for route in routes_only():
            if isinstance(route, WebSocketRoute):
                path = route.path.replace("{ref}", sandbox)
                peer = Address("127.0.0.1")
                said = await ask_for_websocket(world, path, peer, authorization=f"Bearer {key}")
                assert said["type"] != "websocket.accept", path

    serve(scenario)
