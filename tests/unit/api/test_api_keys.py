"""Who gets in over TCP and over the unix socket, with what, and what is recorded of it."""

import ipaddress
import os

import anyio
import pytest
from api_world import until

from casemate.api.connections import Address, Peer
from casemate.api.principal import GRANTABLE, NOUNS, scope_of
from casemate.api.throttle import BURST, Throttle

TORN = r"closed|incomplete|peer"
UNKNOWN = "cm_" + "0" * 12 + "_" + "0" * 52


def test_over_tcp_a_key_is_needed_and_enough(serve):
    async def scenario(world):
        async with world.over_tcp() as client:
            answer = await client.get("/v1/health")
            assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")
            assert answer.headers["www-authenticate"].startswith("Bearer")
        key = await world.key("alice", "sandboxes:write", "images:read")
        async with world.over_tcp(key) as client:
            made = await client.post("/v1/sandboxes", json={})
            assert made.status_code == 201
            assert world.sandboxes.handles[made.json()["id"]].info.tenant == "alice"

    serve(scenario)


@pytest.mark.parametrize(
    "value", ["", "Bearer", f"Basic {UNKNOWN}", f"Bearer {UNKNOWN}", "Bearer cm_x_y", "Bearer " + "a" * 9999]
)
def test_what_is_no_key_is_401(serve, value):
    async def scenario(world):
        async with world.over_tcp(authorization=value) as client:
            answer = await client.get("/v1/health")
            assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")
            assert "secret" not in answer.text

    serve(scenario)


def test_a_wrong_secret_says_no_more_than_an_unknown_key(serve):
    async def scenario(world):
        key = await world.key()
        wrong = key[:-1] + ("0" if key[-1] != "0" else "1")
        said = []
        for text in (wrong, UNKNOWN):
            async with world.over_tcp(text) as client:
                said.append((await client.get("/v1/health")).json()["detail"])
        assert said[0] == said[1]

    serve(scenario)


def test_two_credentials_are_none(serve):
    async def scenario(world):
        key = await world.key()
        async with world.over_tcp() as client:
            pair = [("authorization", f"Bearer {key}"), ("authorization", f"Bearer {UNKNOWN}")]
            assert (await client.get("/v1/health", headers=pair)).status_code == 401

    serve(scenario)


def test_the_secret_is_nowhere_in_the_database(serve, tmp_path):
    async def scenario(world):
        key = await world.key()
        secret = key.rpartition("_")[2]
        folder = os.path.dirname(world.path)
        files = [await anyio.Path(folder, name).read_bytes() for name in os.listdir(folder) if name.startswith("db")]
        assert files
        assert not any(secret.encode() in data for data in files)
        listed = (await world.client.get("/v1/keys")).text
        assert secret not in listed
        assert "hash" not in listed

    serve(scenario)


def test_keys_are_made_on_the_unix_socket_only(serve):
    async def scenario(world):
        async with world.over_tcp(await world.key("local", "*", "admin")) as client:
            for method, path in (("GET", "/v1/keys"), ("POST", "/v1/keys"), ("DELETE", "/v1/keys/x")):
                answer = await client.request(method, path)
                assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")

    serve(scenario)


@pytest.mark.parametrize(
    "wish",
    [
        {"scopes": []},
        {"scopes": ["everything"]},
        {"tenant": "system"},
        {"tenant": "../x"},
        {"expires_s": 0},
        {"expires_s": -1},
        {"expires_s": 1e12},
        {"name": "a\nb"},
        {"name": "a" * 101},
    ],
)
def test_a_key_that_makes_no_sense_is_not_made(serve, wish):
    async def scenario(world):
        answer = await world.client.post("/v1/keys", json=wish)
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid-spec")
        assert world.keys.list() == []

    serve(scenario)


def test_a_revoked_key_is_refused_and_what_it_began_ends(serve):
    async def scenario(world):
        key = await world.key()
        key_id = key.split("_")[1]
        async with world.over_tcp(key) as client:
            made = (await client.post("/v1/sandboxes", json={})).json()["id"]
            body = {"argv": ["hang"], "on_disconnect": "kill"}
            async with client.stream("POST", f"/v1/sandboxes/{made}/execs", json=body) as answer:
                lines = answer.aiter_lines()
                assert "started" in await anext(lines)
                assert (await world.client.delete(f"/v1/keys/{key_id}")).json()["revoked_at"]
                with anyio.fail_after(5), pytest.raises(Exception, match=TORN):
                    async for _ in lines:
                        pass
            refused = await client.get("/v1/health")
            assert (refused.status_code, refused.json()["code"]) == (401, "unauthorized")
            assert "revoked" in refused.json()["detail"]
        assert (await world.client.delete("/v1/keys/nope")).status_code == 404

    serve(scenario)


def test_a_key_expires_also_in_the_middle_of_something(serve):
    async def scenario(world):
        key = await world.key(expires_s=1.0)
        async with world.over_tcp(key) as client:
            async with client.stream("GET", "/v1/events?follow=1") as answer:
                with anyio.fail_after(5), pytest.raises(Exception, match=TORN):
                    async for _ in answer.aiter_lines():
                        pass
            refused = await client.get("/v1/health")
            assert refused.status_code == 401
            assert "expired" in refused.json()["detail"]

    serve(scenario)


def test_keys_outlive_the_daemon(serve):
    async def scenario(world):
        key = await world.key("alice")
        await world.keys.load()
        async with world.over_tcp(key) as client:
            assert (await client.get("/v1/health")).status_code == 200

    serve(scenario)


def test_the_scope_of_each_kind_of_path():
    assert scope_of("GET", "/v1/sandboxes/x/files") == "sandboxes:read"
    assert scope_of("POST", "/v1/sandboxes") == "sandboxes:write"
    assert scope_of("WEBSOCKET", "/v1/sandboxes/x/shell") == "sandboxes:write"
    assert scope_of("GET", "/v1/health") is None
    assert scope_of("GET", "/v1/healthy") == "admin"
    assert scope_of("GET", "/v1/sandboxesx") == "admin"
    assert {f"{noun}:read" for noun in NOUNS.values() if noun} <= set(GRANTABLE)


def test_a_scope_opens_its_own_and_no_more(serve):
    async def scenario(world):
        sandbox = await world.create()
        able = {
            "sandboxes:read": [("GET", f"/v1/sandboxes/{sandbox}")],
            "sandboxes:write": [("GET", f"/v1/sandboxes/{sandbox}"), ("POST", "/v1/sandboxes")],
            "images:read": [("GET", "/v1/images")],
            "images:write": [("GET", "/v1/images"), ("POST", "/v1/images/python/build")],
            "events:read": [("GET", "/v1/events")],
            "admin": [("GET", "/v1/audit")],
        }
        every = {request for requests in able.values() for request in requests}
        for scope, requests in able.items():
            async with world.over_tcp(await world.key("local", scope)) as client:
                for method, path in every:
                    answer = await client.request(method, path)
                    assert (answer.status_code == 403) == ((method, path) not in requests), (scope, method, path)
                assert (await client.get("/v1/health")).status_code == 200

    serve(scenario)


def test_wrong_keys_are_slowed_down_and_good_ones_are_not(serve):
    async def scenario(world):
        key = await world.key()
        async with world.over_tcp(UNKNOWN) as client:
            found = [await client.get("/v1/health") for _ in range(BURST + 5)]
        assert [answer.status_code for answer in found] == [401] * BURST + [429] * 5
        assert 1 <= int(found[-1].headers["retry-after"]) <= 6
        assert found[-1].json()["code"] == "rate-limited"
        async with world.over_tcp(key) as client:
            assert (await client.get("/v1/health")).status_code == 200

    serve(scenario)


def test_the_throttle_forgets_the_oldest_and_recovers():
    throttle = Throttle(burst=2, every_s=0.05)
    assert [throttle.wait_s("a") > 0 for _ in range(4)] == [False, False, True, True]
    for number in range(5000):
        throttle.wait_s(str(number))
    assert len(throttle._full_until) == 4096
    assert throttle.wait_s("a") == 0


def test_failures_fill_neither_the_disk_nor_the_list(serve):
    async def scenario(world):
        async with world.over_tcp(UNKNOWN) as client:
            for _ in range(50):
                await client.get("/v1/health")
        for number in range(200):
            await world.doors.refused.note(tenant="system", actor="nobody", subject=f"10.0.0.{number}", detail={})
        refused = [e for e in await world.trail.listed("system") if e.event == "auth.refused"]
        assert len(refused) <= 66
        await world.doors.refused.flush()
        told = [e for e in await world.trail.listed("system") if e.event == "auth.refused"]
        assert sum(event.detail["count"] for event in told) == 250
        assert len(told) <= 2 * 66

    serve(scenario)


def test_every_authentication_is_an_event(serve):
    async def scenario(world):
        key = await world.key("alice")
        async with world.over_tcp(key) as client:
            await client.get("/v1/health")
            await client.get("/v1/health")
        accepted = [e for e in await world.trail.listed("alice") if e.event == "auth.accepted"]
        assert [(e.actor, e.subject, e.detail["count"]) for e in accepted] == [
            (f"key:{key.split('_')[1]}", "127.0.0.1", 1)
        ]
        await world.doors.accepted.flush()
        newest = (await world.trail.listed("alice"))[0]
        assert newest.detail["count"] == 1
        local = [e for e in await world.trail.listed("local") if e.event == "auth.accepted"]
        assert local[-1].actor == f"uid:{os.geteuid()}"

    serve(scenario)


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "", "[::1", "2130706433"]
)
def test_another_name_for_this_host_is_refused(serve, host):
    async def scenario(world):
        key = await world.key()
        async with world.over_tcp(key, host=host) as client:
            answer = await client.get("/v1/health")
            assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
        async with world.over_tcp(key, host="LOCALHOST:1") as client:
            assert (await client.get("/v1/health")).status_code == 200

    serve(scenario)


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost.evil.example", "x" * 1000])
def test_a_web_page_of_another_site_is_refused(serve, origin):
    async def scenario(world):
        key = await world.key()
        async with world.over_tcp(key, origin=origin) as client:
            assert (await client.get("/v1/health")).status_code == 403
        async with world.over_tcp(key, origin="http://localhost:3000") as client:
            assert (await client.get("/v1/health")).status_code == 200

    serve(scenario)


async def ask_for_websocket(world, path, peer, **headers):
    """What the app says to a WebSocket, at ASGI's level: no server of WebSockets is needed for being refused."""
    scope = {
        "type": "websocket",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(b"host", b"127.0.0.1")] + [(k.encode(), v.encode()) for k, v in headers.items()],
        "state": {"peer": peer},
        "extensions": {"websocket.http.response": {}},
        "subprotocols": [],
    }
    said = []

    async def receive():
        return {"type": "websocket.connect"}

    async def send(message):
        said.append(message)

    await world.app(scope, receive, send)
    return said[0]


def test_a_websocket_passes_the_same_doors(serve):
    async def scenario(world):
        key = await world.key("local", "sandboxes:read")
        path, outside = "/v1/sandboxes/x/shell", Address("127.0.0.1")
        for headers, status in (
            ({}, 401),
            ({"authorization": f"Bearer {key}", "origin": "https://evil.example"}, 403),
            ({"authorization": f"Bearer {key}"}, 403),  # it may read; a terminal is more
        ):
            said = await ask_for_websocket(world, path, outside, **headers)
            assert (said["type"], said["status"]) == ("websocket.http.response.start", status)
        said = await ask_for_websocket(world, path, Peer(1, 12345, 1))
        assert said["status"] == 403

    serve(scenario)


def test_a_request_from_nobody_is_refused(serve):
    async def scenario(world):
        assert (await ask_for_websocket(world, "/v1/x", None))["status"] == 403

    serve(scenario)


def test_behind_a_proxy_only_the_proxy_may_connect(serve):
    proxy = (ipaddress.ip_network("192.0.2.1/32"),)

    async def scenario(world):
        async with world.over_tcp(await world.key()) as client:
            answer = await client.get("/v1/health", headers={"x-forwarded-for": "192.0.2.1"})
            assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")

    serve(scenario, proxies=proxy)


def test_behind_a_proxy_failures_count_against_whom_it_names(serve):
    async def scenario(world):
        async with world.over_tcp(UNKNOWN) as client:
            for _ in range(BURST + 1):
                first = await client.get("/v1/health", headers={"x-forwarded-for": "9.9.9.9, 198.51.100.1"})
            other = await client.get("/v1/health", headers={"x-forwarded-for": "198.51.100.1, 198.51.100.2"})
        assert (first.status_code, other.status_code) == (429, 401)

    serve(scenario, proxies=(ipaddress.ip_network("127.0.0.0/8"),))


def test_a_user_of_the_host_has_the_tenant_the_settings_say(serve):
    async def scenario(world):
        await until(lambda: world.port)
        said = await ask_for_websocket(world, "/v1/keys", Peer(1, 1000, 1000))
        assert said["status"] == 403

    serve(scenario, tenants_by_uid={1000: "alice"})
