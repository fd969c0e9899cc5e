"""What happened, listed and followed; whether the record is whole."""

import json
from itertools import pairwise

import anyio
import pytest
import sqlalchemy as sa


async def record(world, count, tenant="local"):
    for number in range(count):
        await world.trail.record("sandbox.created", tenant=tenant, subject=f"s{number}")


def subjects(events):
    return [event["subject"] for event in events if event["event"] == "sandbox.created"]


def test_events_are_listed_by_their_cursor_and_their_tenant(serve):
    async def scenario(world):
        await record(world, 5)
        await record(world, 3, "alice")
        newest = (await world.client.get("/v1/events?limit=3")).json()  # the third is this request's own
        assert subjects(newest["events"]) == ["s3", "s4"]
        seen, after = [], 0
        while found := (await world.client.get("/v1/events", params={"after": after, "limit": 2})).json()["events"]:
            seen += found
            after = found[-1]["id"]
        assert subjects(seen) == ["s0", "s1", "s2", "s3", "s4"]
        assert {event["tenant"] for event in seen} == {"local"}
        every = (await world.client.get("/v1/events?after=0&all_tenants=1&limit=1000")).json()["events"]
        assert [event["id"] for event in every] == list(range(1, len(every) + 1))
        assert all(now["prev_hash"] == before["hash"] for before, now in pairwise(every))
        async with world.over_tcp(await world.key("alice", "events:read")) as client:
            assert subjects((await client.get("/v1/events")).json()["events"]) == ["s0", "s1", "s2"]
            assert (await client.get("/v1/events?all_tenants=1")).status_code == 403
            assert (await client.get("/v1/audit")).status_code == 403

    serve(scenario)


def test_events_are_followed_as_they_happen(serve):
    async def scenario(world):
        await record(world, 3)
        seen = []
        async with world.client.stream("GET", "/v1/events?follow=1") as answer:
            assert answer.headers["content-type"] == "application/x-ndjson"
            lines = answer.aiter_lines()
            assert json.loads(await anext(lines))["event"] == "following"
            for number in range(20):
                await world.trail.record("sandbox.killed", tenant="alice", subject="not yours")
                await world.trail.record("sandbox.killed", tenant="local", subject=str(number))
                with anyio.fail_after(5):
                    seen.append(json.loads(await anext(lines))["subject"])
        assert seen == [str(number) for number in range(20)]

    serve(scenario)


def test_a_follower_starts_where_it_left_off(serve):
    async def scenario(world):
        await record(world, 5)
        every = (await world.client.get("/v1/events?after=0")).json()["events"]
        after = next(event["id"] for event in every if event["subject"] == "s2")
        async with world.client.stream("GET", f"/v1/events?follow=1&after={after}") as answer:
            lines = answer.aiter_lines()
            await anext(lines)
            assert [json.loads(await anext(lines))["subject"] for _ in range(2)] == ["s3", "s4"]

    serve(scenario)


@pytest.mark.parametrize("query", ["after=-1", "after=x", "limit=0", "limit=1001", "follow=maybe"])
def test_a_query_that_makes_no_sense(serve, query):
    async def scenario(world):
        assert (await world.client.get(f"/v1/events?{query}")).json()["code"] == "invalid-spec"

    serve(scenario)


def test_the_chain_is_verified_over_the_api(serve):
    async def scenario(world):
        await record(world, 4)
        first = (await world.client.get("/v1/audit")).json()
        assert (first["ok"], first["broken"], first["warnings"]) == (True, None, [])
        assert first["events"] >= 4
        await record(world, 2)
        again = (await world.client.get("/v1/audit", params={"mark": first["mark"]})).json()
        assert again["ok"]
        other = f"{first['events']}:{'0' * 64}"
        told = (await world.client.get("/v1/audit", params={"mark": other})).json()
        assert told["broken"]["id"] == first["events"]
        assert (await world.client.get("/v1/audit", params={"mark": "x"})).json()["code"] == "invalid-spec"

        def change(connection):
            connection.execute(sa.text("DROP TRIGGER audit_events_no_update"))
            connection.execute(sa.text("UPDATE audit_events SET actor = 'x' WHERE id = 2"))

        await world.trail.database.write(change)
        broken = (await world.client.get("/v1/audit")).json()
        assert (broken["ok"], broken["broken"]["id"]) == (False, 2)

    serve(scenario)
