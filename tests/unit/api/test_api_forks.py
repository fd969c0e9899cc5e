"""Fork and snapshot: what is asked for reaches the services, and who goes away leaves nothing behind."""

import json

import anyio
import pytest
from api_world import reason, until

from casemate.api.idempotency import MAX_KEPT_BYTES

ATTESTATION_BYTES = 2048  # a real one has some 1500; the guests here have none


def test_copies_are_told_with_what_they_are_copies_of(serve):
    async def scenario(world):
        parent = await world.create(name="box", labels={"a": "b"})
        made = await world.client.post("/v1/sandboxes/box/fork", json={"count": 3})
        assert made.status_code == 201
        copies = made.json()["sandboxes"]
        assert len({copy["id"] for copy in copies} | {parent}) == 4
        for copy in copies:
            assert (copy["forked_from"], copy["name"], copy["state"]) == (parent, None, "running")
            assert copy["labels"] == {"a": "b"}
        assert (await world.client.get(f"/v1/sandboxes/{parent}")).json()["forked_from"] is None
        (one,) = (await world.client.post(f"/v1/sandboxes/{parent}/fork", json={"labels": {"c": "d"}})).json()[
            "sandboxes"
        ]
        assert one["labels"] == {"a": "b", "c": "d"}

    serve(scenario)


@pytest.mark.parametrize("body", [{"count": 0}, {"count": 65}, {"count": "2"}, {"count": 1.5}, {"copies": 2}])
def test_a_count_that_is_none(serve, body):
    async def scenario(world):
        answer = await world.client.post(f"/v1/sandboxes/{await world.create()}/fork", json=body)
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid-spec")
        assert len(world.sandboxes.handles) == 1

    serve(scenario)


def test_with_one_key_the_most_copies_are_made_once_and_told_twice(serve):
    async def scenario(world):
        path, once = f"/v1/sandboxes/{await world.create()}/fork", {"idempotency-key": "k"}
        first = await world.client.post(path, json={"count": 64}, headers=once)
        again = await world.client.post(path, json={"count": 64}, headers=once)
        assert (first.status_code, again.status_code) == (201, 201)
        assert first.content == again.content
        assert again.headers["idempotency-replayed"] == "true"
        assert len(world.sandboxes.handles) == 65
        attested = len(first.content) + 64 * ATTESTATION_BYTES
        assert attested < MAX_KEPT_BYTES

    serve(scenario)


def test_news_come_before_the_copies(serve):
    async def scenario(world):
        parent = await world.create()
        world.sandboxes.news = 2
        answer = await world.client.post(f"/v1/sandboxes/{parent}/fork", json={"count": 2, "progress": True})
        assert (answer.status_code, answer.headers["content-type"]) == (201, "application/x-ndjson")
        told = [json.loads(line) for line in answer.text.splitlines()]
        assert [line.get("event") for line in told] == [*["progress"] * 4, None]
        assert len(told[-1]["sandboxes"]) == 2

    serve(scenario)


@pytest.mark.parametrize("progress", [False, True])
def test_a_fork_ends_with_its_client(serve, progress):
    async def scenario(world):
        parent = await world.create()
        world.sandboxes.hold = anyio.Event()
        with anyio.move_on_after(0.2) as scope:
            await world.client.post(f"/v1/sandboxes/{parent}/fork", json={"count": 3, "progress": progress})
        assert scope.cancelled_caught
        await until(lambda: world.sandboxes.cancelled == 1, 2)
        assert list(world.sandboxes.handles) == [parent]

    serve(scenario)


def test_who_leaves_before_it_was_told_of_the_copies_has_none(serve):
    async def scenario(world):
        parent = await world.create()
        world.sandboxes.news = 5000  # more than a socket takes: the client reads nothing of it
        body = {"count": 1, "progress": True}
        async with world.client.stream("POST", f"/v1/sandboxes/{parent}/fork", json=body):
            await until(lambda: len(world.sandboxes.handles) == 2)
        copy = next(handle for name, handle in world.sandboxes.handles.items() if name != parent)
        with anyio.fail_after(5):
            await copy.ended.wait()
        assert reason(copy).message == "its client went away"
        assert not world.sandboxes.handles[parent].ended.is_set()

    serve(scenario)


def test_a_snapshot_is_a_version_with_what_it_took(serve):
    async def scenario(world):
        sandbox = await world.create(name="box")
        path, body = "/v1/sandboxes/box/snapshot", {"name": "trained", "tag": "good"}
        made = await world.client.post(path, json=body, headers={"idempotency-key": "k"})
        assert made.status_code == 201
        version = made.json()
        assert (version["name"], version["version"], version["tag"]) == ("trained", 1, "good")
        assert (version["pause_ms"], version["frozen_ms"], version["took_ms"]) == (12.5, 30.25, 400.5)
        again = await world.client.post(path, json=body, headers={"idempotency-key": "k"})
        assert (again.json(), again.headers["idempotency-replayed"]) == (version, "true")
        assert [row[:3] for row in world.images.kept] == [(sandbox, "trained", "good")]
        for wrong in ({}, {"name": None}, {"name": "x", "tag": 1}):
            assert (await world.client.post(path, json=wrong)).status_code == 400

    serve(scenario)


def test_a_snapshot_ends_with_its_client(serve):
    async def scenario(world):
        sandbox = await world.create()
        world.images.hold = anyio.Event()
        with anyio.move_on_after(0.2) as scope:
            await world.client.post(f"/v1/sandboxes/{sandbox}/snapshot", json={"name": "x"})
        assert scope.cancelled_caught
        await until(lambda: world.images.cancelled == 1, 2)
        assert world.images.kept == []

    serve(scenario)


@pytest.mark.parametrize(("act", "body"), [("fork", {}), ("snapshot", {"name": "x"})])
def test_it_takes_the_right_to_write_and_the_right_tenant(serve, act, body):
    async def scenario(world):
        path = f"/v1/sandboxes/{await world.create()}/{act}"
        scopes = ("sandboxes:write", "snapshots:write")
        for given, tenant, status in (
            (("sandboxes:read", "snapshots:write"), "local", 403),
            (scopes, "other", 404),
        ):
            async with world.over_tcp(await world.key(tenant, *given)) as client:
                assert (await client.post(path, json=body)).status_code == status
        assert (world.sandboxes.lives, world.images.kept) == ([], [])
        async with world.over_tcp(await world.key("local", "sandboxes:write")) as client:
            answer = await client.post(path, json=body)
            assert answer.status_code == (201 if act == "fork" else 403)
        async with world.over_tcp(await world.key("local", *scopes)) as client:
            assert (await client.post(path, json=body)).status_code == 201

    serve(scenario)
