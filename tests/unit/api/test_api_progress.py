"""A create that tells how far it is: in order, never waiting for who does not listen, ended with its client."""

import json
import socket

import anyio
import pytest
from api_world import reason, until

from casemate import errors


@pytest.mark.parametrize("attached", [False, True])
def test_news_come_before_the_sandbox(serve, attached):
    async def scenario(world):
        world.sandboxes.news = 3
        body = {"progress": True, "attached": attached}
        async with world.client.stream("POST", "/v1/sandboxes", json=body) as answer:
            assert answer.status_code == 201
            lines = answer.aiter_lines()
            told = [json.loads(await anext(lines)) for _ in range(3)]
            assert [line["event"] for line in told] == ["progress"] * 3
            assert [line["fraction"] for line in told] == [0, 1 / 3, 2 / 3]
            made = json.loads(await anext(lines))
            assert made["state"] == "running"
            if not attached:
                assert [line async for line in lines] == []
        if not attached:
            assert not world.sandboxes.handles[made["id"]].ended.is_set()

    serve(scenario)


def test_who_does_not_ask_is_answered_plainly(serve):
    async def scenario(world):
        world.sandboxes.news = 3
        answer = await world.client.post("/v1/sandboxes", json={"build": False})
        assert answer.headers["content-type"] == "application/json"
        assert answer.json()["state"] == "running"
        assert next(iter(world.sandboxes.handles.values())).spec.build is False

    serve(scenario)


def test_a_refusal_before_any_news_has_its_status(serve):
    async def scenario(world):
        world.sandboxes.fail_with = errors.SnapshotMissing("none", hint="build one")
        answer = await world.client.post("/v1/sandboxes", json={"progress": True, "build": False})
        assert (answer.status_code, answer.json()["code"]) == (409, "snapshot-missing")

    serve(scenario)


@pytest.mark.parametrize("attached", [False, True])
def test_a_client_that_reads_nothing_holds_up_nothing_and_leaves_nothing(serve, attached):
    """A megabyte of news that nobody reads: the create is done all the same; the client goes, so does the sandbox."""

    async def scenario(world):
        world.sandboxes.news = 5000
        body = json.dumps({"progress": True, "attached": attached}).encode()
        head = f"POST /v1/sandboxes HTTP/1.1\r\nHost: c\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(world.path)
            client.sendall(head + body)
            await until(lambda: world.sandboxes.handles)
            handle = next(iter(world.sandboxes.handles.values()))
            await anyio.sleep(0.2)
            assert not handle.ended.is_set()
        with anyio.fail_after(5):
            await handle.ended.wait()
        assert reason(handle).message == "its client went away"

    serve(scenario)
