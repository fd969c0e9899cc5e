"""``/v1/pools`` and ``/metrics``: who may keep what ready, and who may look."""

from __future__ import annotations

import pytest


def test_a_pool_is_set_listed_shown_and_removed(serve):
    async def scenario(world):
        wish = {"image": "python", "min_ready": 2, "max_ready": 4, "schedule": "* 8-18 * * 1-5", "memory_mib": 256}
        made = (await world.client.put("/v1/pools", json=wish)).json()
        assert (made["tenant"], made["memory_mib"], made["vcpus"], made["max_ready"]) == ("local", 256, 1, 4)
        listed = (await world.client.get("/v1/pools")).json()["pools"]
        assert [pool["image"] for pool in listed] == ["mine", "python"]
        assert (await world.client.get(f"/v1/pools/{made['id']}")).json()["misses"] == {"empty": 2}
        assert (await world.client.delete("/v1/pools/python")).json()["id"] == made["id"]
        assert (await world.client.get("/v1/pools/python")).status_code == 404

    serve(scenario)


@pytest.mark.parametrize(
    "wrong",
    [
        {"min_ready": -1},
        {"min_ready": "2"},
        {"schedule": "every day"},
        {"target_utilization": 2},
        {"max_ready": 0},
        {"burst": 3},
        {"memory_mib": 1.5},
        {"memory_mib": 65_537},
        {"memory_mib": 2**70},
        {"disk_mib": 1_048_577},
        {"disk_mib": -1},
        {"vcpus": 33},
    ],
)
def test_what_makes_no_sense_is_refused(serve, wrong):
    async def scenario(world):
        answer = await world.client.put("/v1/pools", json={"image": "python", "min_ready": 1, **wrong})
        assert answer.status_code == 400, answer.text
        assert answer.json()["code"] == "invalid-spec"

    serve(scenario)


def test_what_is_for_everybody_is_the_hosts_owners_to_set_and_remove(serve):
    async def scenario(world):
        wish = {"image": "python", "min_ready": 1, "shared": True}
        shared = (await world.client.put("/v1/pools", json=wish)).json()
        assert shared["tenant"] == "system"
        assert shared["hits"] == 0
        for tenant, scopes in (("mallory", ("*",)), ("local", ("pools:write",))):
            async with world.over_tcp(await world.key(tenant, *scopes)) as client:
                assert (await client.put("/v1/pools", json=wish)).status_code == 403
                assert (await client.delete(f"/v1/pools/{shared['id']}")).status_code == 403
                [seen] = [p for p in (await client.get("/v1/pools")).json()["pools"] if p["id"] == shared["id"]]
                assert (seen["min_ready"], seen["in_use"], seen["hits"], seen["claim"]) == (1, None, None, None)
        async with world.over_tcp(await world.key("local", "*")) as client:
            assert (await client.delete(f"/v1/pools/{shared['id']}")).status_code == 200

    serve(scenario)


def test_metrics_are_the_operators(serve):
    async def scenario(world):
        world.sandboxes.meters.creates.labels("created").inc()
        keys = [
            ("local", ("pools:write", "sandboxes:write"), 403),
            ("mallory", ("*",), 403),
            ("local", ("admin",), 200),
        ]
        for tenant, scopes, status in keys:
            async with world.over_tcp(await world.key(tenant, *scopes)) as client:
                assert (await client.get("/metrics")).status_code == status
        answer = await world.client.get("/metrics")
        assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
        assert 'casemate_sandbox_creates_total{result="created"} 1.0' in answer.text.splitlines()

    serve(scenario)
