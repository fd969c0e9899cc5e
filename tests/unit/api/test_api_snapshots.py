"""``/v1/snapshots``: who may see, carry and remove what was kept of sandboxes."""

from __future__ import annotations

import hashlib

import pytest
from tests.unit.api.fake_kept import BUNDLE, SNAPSHOT

DIGEST = hashlib.sha256(BUNDLE).hexdigest()


def test_they_are_listed_shown_and_removed(serve):
    async def scenario(world):
        first = (await world.client.get("/v1/snapshots", params={"limit": 2})).json()
        assert [one["version"] for one in first["snapshots"]] == [1, 2]
        rest = (await world.client.get("/v1/snapshots", params={"cursor": first["next"]})).json()
        assert [one["version"] for one in rest["snapshots"]] == [3]
        assert rest["next"] is None
        for ref in ("work", "work@1", "work:good"):
            shown = (await world.client.get(f"/v1/snapshots/{ref}")).json()
            assert shown == SNAPSHOT | {"misfits": [], "broken": None}
        assert (await world.client.delete("/v1/snapshots/work@1")).json()["removed"] == []
        assert (await world.client.post("/v1/snapshots/prune", json={"dry_run": True})).json()["dry_run"] is True
        asked = {
            act: (asked["anybodys"] if act == "remove" else asked["everybodys"]) for act, _, asked in _asked(world)
        }
        assert asked == {"remove": True, "prune": True}  # who comes by the socket is the host's owner

    serve(scenario)


def test_a_bundle_goes_out_whole_and_comes_in_by_its_sha256(serve):
    async def scenario(world):
        answer = await world.client.get("/v1/snapshots/work/export")
        assert (answer.content, answer.headers["content-length"]) == (BUNDLE, str(len(BUNDLE)))
        await world.client.get("/v1/snapshots/work/export", params={"base": "0"})
        assert [asked["base"] for _, _, asked in _asked(world)] == [True, False]
        params = {"sha256": DIGEST, "name": "theirs"}
        taken = await world.client.post("/v1/snapshots/import", content=BUNDLE, params=params)
        assert (taken.status_code, taken.json()["name"]) == (201, "theirs")
        for wrong in ({"sha256": "0" * 64}, {}, {"sha256": DIGEST, "more": "x"}):
            refused = await world.client.post("/v1/snapshots/import", content=BUNDLE, params=wrong)
            assert (refused.status_code, refused.json()["code"]) == (400, "invalid-spec"), wrong

    serve(scenario)


@pytest.mark.parametrize(("tenant", "granted"), [("mallory", "*"), ("local", "snapshots:write")])
def test_what_is_the_hosts_owners_alone(serve, tenant, granted):
    async def scenario(world):
        async with world.over_tcp(await world.key(tenant, granted)) as client:
            taken = await client.post("/v1/snapshots/import", content=BUNDLE, params={"sha256": DIGEST})
            assert taken.status_code == 403
            await client.post("/v1/snapshots/prune", json={})
        (pruned,) = _asked(world)
        assert (pruned[1], pruned[2]["everybodys"]) == (tenant, False)

    serve(scenario)


def test_to_use_images_or_sandboxes_opens_no_memory_of_one(serve):
    async def scenario(world):
        async with world.over_tcp(await world.key("local", "images:write", "sandboxes:read")) as client:
            assert (await client.get("/v1/snapshots")).status_code == 403
            assert (await client.get("/v1/snapshots/work/export")).status_code == 403
        async with world.over_tcp(await world.key("local", "snapshots:read")) as client:
            assert (await client.get("/v1/snapshots/work/export")).status_code == 200
            assert (await client.delete("/v1/snapshots/work")).status_code == 403

    serve(scenario)


def _asked(world):
    return world.kept.asked
