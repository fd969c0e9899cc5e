"""Suspend, resume, keep-alive: what is asked for reaches the service, and what is answered says how it is."""

from __future__ import annotations

import pytest


def test_how_it_rests_is_part_of_the_wish(serve):
    async def scenario(world):
        wish = {"on_idle": "suspend", "park_after_s": None, "auto_resume": False}
        made = (await world.client.post("/v1/sandboxes", json=wish)).json()
        assert {name: made[name] for name in wish} == wish
        plain = (await world.client.post("/v1/sandboxes", json={})).json()
        assert (plain["on_idle"], plain["park_after_s"], plain["auto_resume"]) == ("kill", 5, True)
        assert (plain["suspended"], plain["parked"]) == (None, False)
        refused = await world.client.post("/v1/sandboxes", json={"on_idle": "sleep"})
        assert (refused.status_code, refused.json()["evidence"]["field"]) == (400, "on_idle")

    serve(scenario)


def test_suspended_and_resumed(serve):
    async def scenario(world):
        path = f"/v1/sandboxes/{await world.create(name='box')}"
        stored = (await world.client.post(f"{path}/suspend")).json()
        assert stored["state"] == "suspended"
        facts = {"stored_bytes": 20_000, "dirty_bytes": 16_384, "written_bytes": 4_096, "pause_ms": 12.5}
        assert stored["suspended"] == facts | {"took_ms": 40.25, "at": stored["suspended"]["at"]}
        assert (await world.client.get(path)).json()["suspended"] == stored["suspended"]
        running = (await world.client.post(f"{path}/resume")).json()
        assert (running["state"], running["suspended"]) == ("running", None)
        await world.client.post("/v1/sandboxes/box/suspend")
        await world.client.post("/v1/sandboxes/box/resume", json={"cold": True})
        asked = [act for act, _ in world.sandboxes.lives]
        assert asked == ["suspend", "resume", "suspend", "cold"]
        wrong = await world.client.post(f"{path}/resume", json={"cold": 1})
        assert (wrong.status_code, wrong.json()["evidence"]["field"]) == (400, "cold")

    serve(scenario)


def test_asked_twice_with_one_key_it_is_done_once(serve):
    async def scenario(world):
        path, once = f"/v1/sandboxes/{await world.create()}/suspend", {"idempotency-key": "k"}
        first = await world.client.post(path, headers=once)
        again = await world.client.post(path, headers=once)
        assert (first.json(), again.headers["idempotency-replayed"]) == (again.json(), "true")
        assert len(world.sandboxes.lives) == 1

    serve(scenario)


def test_kept_alive(serve):
    async def scenario(world):
        sandbox = await world.create()
        kept = await world.client.post(f"/v1/sandboxes/{sandbox}/keep-alive", json={"for_s": 60})
        assert (kept.status_code, kept.json()["id"]) == (200, sandbox)
        assert world.sandboxes.lives == [(60, sandbox)]
        for body in ({}, {"for_s": "60"}, {"for_s": None}):
            assert (await world.client.post(f"/v1/sandboxes/{sandbox}/keep-alive", json=body)).status_code == 400

    serve(scenario)


def test_a_parked_one_says_so(serve):
    async def scenario(world):
        sandbox = await world.create()
        world.sandboxes.handles[sandbox].parking.parked = True
        assert (await world.client.get(f"/v1/sandboxes/{sandbox}")).json()["parked"] is True
        listed = (await world.client.get("/v1/sandboxes")).json()["sandboxes"]
        assert [(s["state"], s["parked"]) for s in listed] == [("running", True)]

    serve(scenario)


@pytest.mark.parametrize("act", ["suspend", "resume", "keep-alive"])
def test_it_takes_the_right_to_write_and_the_right_tenant(serve, act):
    async def scenario(world):
        path, body = f"/v1/sandboxes/{await world.create()}/{act}", {"for_s": 1} if act == "keep-alive" else {}
        for scope, tenant, status in (("sandboxes:read", "local", 403), ("sandboxes:write", "other", 404)):
            async with world.over_tcp(await world.key(tenant, scope)) as client:
                assert (await client.post(path, json=body)).status_code == status
        assert world.sandboxes.lives == []
        async with world.over_tcp(key := await world.key("local", "sandboxes:write")) as client:
            assert (await client.post(path, json=body)).status_code == 200
        assert act == "keep-alive" or world.sandboxes.lives == [(act, f"key:{key.split('_')[1]}")]

    serve(scenario)
