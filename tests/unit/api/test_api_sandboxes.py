"""Create, list, get, kill; and sandboxes that live no longer than their client."""

import json

import anyio
import pytest
from api_world import reason, until

from casemate.sandbox import State

FIELDS = {
    "id", "name", "image", "state", "state_reason", "isolation", "accelerator", "vcpus", "memory_mib",
    "disk_mib", "labels", "created_at", "updated_at", "idle_timeout_s", "on_idle", "max_duration_s",
    "network", "attached", "timings", "pid", "attestation", "park_after_s", "auto_resume", "suspended", "parked",
    "forked_from",
}  # fmt: skip


def test_a_life(serve):
    async def scenario(world):
        made = await world.client.post(
            "/v1/sandboxes", json={"name": "box", "labels": {"a": "b"}, "env": None, "idle_timeout_s": None}
        )
        assert made.status_code == 201
        assert set(made.json()) == FIELDS
        assert (made.json()["state"], made.json()["labels"], made.json()["idle_timeout_s"]) == (
            "running", {"a": "b"}, None,
        )  # fmt: skip
        sandbox = made.json()["id"]
        assert (await world.client.get("/v1/sandboxes/box")).json()["id"] == sandbox
        assert [s["id"] for s in (await world.client.get("/v1/sandboxes")).json()["sandboxes"]] == [sandbox]
        for _ in range(2):
            killed = (await world.client.delete(f"/v1/sandboxes/{sandbox}")).json()
            assert (killed["state"], killed["state_reason"]["code"]) == ("terminated", "killed")
        assert (await world.client.get("/v1/sandboxes")).json()["sandboxes"] == []
        assert len((await world.client.get("/v1/sandboxes?all=1")).json()["sandboxes"]) == 1
        answer = await world.client.post(f"/v1/sandboxes/{sandbox}/execs", json={"argv": ["x"]})
        assert (answer.status_code, answer.json()["code"]) == (409, "state-conflict")

    serve(scenario)


def test_an_attached_sandbox_ends_with_its_client(serve):
    async def scenario(world):
        async with world.client.stream("POST", "/v1/sandboxes", json={"attached": True}) as answer:
            assert answer.status_code == 201
            first = json.loads(await anext(answer.aiter_lines()))
            handle = world.sandboxes.get("local", first["id"])
            assert handle.info.state is State.RUNNING
        with anyio.fail_after(2):
            await handle.ended.wait()
        assert reason(handle).message == "its client went away"

    serve(scenario)


def test_an_attached_sandbox_that_is_killed_ends_its_response(serve):
    async def scenario(world):
        async with world.client.stream("POST", "/v1/sandboxes", json={"attached": True}) as answer:
            lines = answer.aiter_lines()
            sandbox = json.loads(await anext(lines))["id"]
            await world.client.delete(f"/v1/sandboxes/{sandbox}")
            last = json.loads(await anext(lines))
            assert (last["event"], last["sandbox"]["state"]) == ("terminated", "terminated")
            assert [line async for line in lines] == []

    serve(scenario)


@pytest.mark.parametrize("attached", [False, True])
def test_a_pending_create_ends_with_its_client(serve, attached):
    async def scenario(world):
        world.sandboxes.hold = anyio.Event()
        with anyio.move_on_after(0.2) as scope:
            await world.client.post("/v1/sandboxes", json={"attached": attached})
        assert scope.cancelled_caught
        await until(lambda: world.sandboxes.cancelled == 1, 2)
        assert world.sandboxes.handles == {}

    serve(scenario)


def test_quiet_streams_are_kept_alive(serve, monkeypatch):
    monkeypatch.setattr("casemate.api.native.streams.KEEP_ALIVE_S", 0.2)

    async def scenario(world):
        async with world.client.stream("POST", "/v1/sandboxes", json={"attached": True}) as answer:
            lines = answer.aiter_lines()
            await anext(lines)
            for _ in range(2):
                assert json.loads(await anext(lines)) == {"event": "keepalive"}

    serve(scenario)
