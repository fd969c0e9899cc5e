"""A POST with an Idempotency-Key is done once."""

import anyio
import httpx
import pytest
from api_world import until

from casemate import errors
from casemate.storage import answers


def keyed(key):
    return {"idempotency-key": key}


def test_the_same_request_is_done_once_and_answered_twice(serve):
    async def scenario(world):
        first = await world.client.post("/v1/sandboxes", json={"name": "a"}, headers=keyed("k"))
        again = await world.client.post("/v1/sandboxes", json={"name": "a"}, headers=keyed("k"))
        assert (first.status_code, again.status_code) == (201, 201)
        assert first.content == again.content
        assert again.headers["idempotency-replayed"] == "true"
        assert "idempotency-replayed" not in first.headers
        assert len(world.sandboxes.handles) == 1

    serve(scenario)


def test_another_request_with_the_key_is_a_conflict(serve):
    async def scenario(world):
        await world.client.post("/v1/sandboxes", json={"name": "a"}, headers=keyed("k"))
        for path, body in (("/v1/sandboxes", {"name": "b"}), ("/v1/sandboxes?x=1", {"name": "a"}), ("/v1/keys", {})):
            answer = await world.client.post(path, json=body, headers=keyed("k"))
            assert (answer.status_code, answer.json()["code"]) == (409, "idempotency-conflict")
        assert len(world.sandboxes.handles) == 1

    serve(scenario)


def test_a_key_is_one_tenants(serve):
    async def scenario(world):
        mine = await world.client.post("/v1/sandboxes", json={}, headers=keyed("k"))
        async with world.over_tcp(await world.key("alice")) as client:
            hers = await client.post("/v1/sandboxes", json={}, headers=keyed("k"))
        assert mine.json()["id"] != hers.json()["id"]

    serve(scenario)


def test_twenty_at_once_make_one(serve):
    async def scenario(world):
        world.sandboxes.hold = anyio.Event()
        found = []

        async def ask():
            found.append(await world.client.post("/v1/sandboxes", json={}, headers=keyed("k")))

        async with anyio.create_task_group() as tasks:
            for _ in range(20):
                tasks.start_soon(ask)
            await anyio.sleep(0.2)
            assert not found
            world.sandboxes.hold.set()
        assert {answer.status_code for answer in found} == {201}
        assert len({answer.json()["id"] for answer in found}) == 1
        assert len(world.sandboxes.handles) == 1

    serve(scenario)


def test_what_failed_is_tried_again(serve):
    async def scenario(world):
        world.sandboxes.fail_with = errors.HostFull("full", evidence={"retry_after_s": 3.2})
        answer = await world.client.post("/v1/sandboxes", json={}, headers=keyed("k"))
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "4")
        world.sandboxes.fail_with = None
        assert (await world.client.post("/v1/sandboxes", json={}, headers=keyed("k"))).status_code == 201

    serve(scenario)


def test_one_whose_client_went_away_does_not_block_the_next(serve):
    async def scenario(world):
        world.sandboxes.hold = anyio.Event()
        with pytest.raises(httpx.ReadTimeout):
            await world.client.post("/v1/sandboxes", json={}, headers=keyed("k"), timeout=0.2)
        await until(lambda: world.sandboxes.cancelled)
        world.sandboxes.hold = None
        assert (await world.client.post("/v1/sandboxes", json={}, headers=keyed("k"))).status_code == 201

    serve(scenario)


def test_a_stream_cannot_be_repeated(serve):
    async def scenario(world):
        sandbox = await world.create()
        path, body = f"/v1/sandboxes/{sandbox}/execs", {"argv": ["echo", "x"]}
        first = await world.client.post(path, json=body, headers=keyed("k"))
        assert first.status_code == 200
        again = await world.client.post(path, json=body, headers=keyed("k"))
        assert (again.status_code, again.json()["code"]) == (409, "idempotency-conflict")

    serve(scenario)


def test_a_stream_with_a_key_is_still_a_stream(serve):
    async def scenario(world):
        sandbox = await world.create()
        path, body = f"/v1/sandboxes/{sandbox}/execs", {"argv": ["hang"]}
        async with world.client.stream("POST", path, json=body, headers=keyed("k")) as answer:
            with anyio.fail_after(5):
                assert "started" in await anext(answer.aiter_lines())

    serve(scenario)


@pytest.mark.parametrize("key", ["", "a b", "a" * 256])
def test_a_key_that_is_none(serve, key):
    async def scenario(world):
        answer = await world.client.post("/v1/sandboxes", json={}, headers=keyed(key))
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid-spec")

    serve(scenario)


def test_answers_expire_and_are_counted(serve, monkeypatch):
    monkeypatch.setattr(answers, "MAX_ANSWERS", 2)

    async def scenario(world):
        found = [await world.client.post("/v1/sandboxes", json={}, headers=keyed(f"k{n}")) for n in range(3)]
        assert [answer.status_code for answer in found] == [201, 201, 429]
        assert found[-1].json()["code"] == "quota-exceeded"

        def age(connection):
            connection.exec_driver_sql("UPDATE answers SET expires_at = 1")

        await world.trail.database.write(age)
        again = await world.client.post("/v1/sandboxes", json={}, headers=keyed("k0"))
        assert again.status_code == 201
        assert again.json()["id"] != found[0].json()["id"]

    serve(scenario)
