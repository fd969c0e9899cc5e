"""Files over HTTP: bytes as they are, whole or not at all, and fast."""

import os
import socket
import time

import anyio
from api_world import until


def test_there_and_back(serve):
    data = os.urandom(3 * 2**20 + 17)

    async def scenario(world):
        sandbox = await world.create()
        files = f"/v1/sandboxes/{sandbox}/files"
        answer = await world.client.put(f"{files}?path=a/b%20c&mode=0600", content=data)
        assert answer.json() == {"path": "a/b c", "size": len(data)}
        assert (await world.client.get(f"{files}?path=a/b%20c")).content == data
        part = await world.client.get(f"{files}?path=a/b%20c&offset=5&length=7")
        assert part.content == data[5:12]
        stat = (await world.client.get(f"{files}/stat?path=a/b%20c")).json()
        assert (stat["size"], stat["name"], stat["type"]) == (len(data), "b c", "file")
        entries = (await world.client.get(f"{files}/list?path=.")).json()["entries"]
        assert [e["path"] for e in entries] == ["a/b c"]
        assert (await world.client.delete(f"{files}?path=a/b%20c&recursive=1")).status_code == 200
        answer = await world.client.get(f"{files}?path=a/b%20c")
        assert (answer.status_code, answer.json()["evidence"]["errno"]) == (404, "ENOENT")

    serve(scenario)


def test_refusals(serve):
    async def scenario(world):
        sandbox = await world.create()
        files = f"/v1/sandboxes/{sandbox}/files"
        answer = await world.client.put(f"{files}?path=/root/x", content=b"x")
        assert (answer.status_code, answer.json()["evidence"]["errno"]) == (409, "EACCES")
        for query in ("", "?path=", "?path=a%00b", "?path=x&mode=999", "?path=x&colour=red"):
            answer = await world.client.put(files + query, content=b"x")
            assert (answer.status_code, answer.json()["code"]) == (400, "invalid-spec"), query

    serve(scenario)


def test_an_empty_file(serve):
    async def scenario(world):
        sandbox = await world.create()
        files = f"/v1/sandboxes/{sandbox}/files?path=empty"
        assert (await world.client.put(files, content=b"")).json()["size"] == 0
        answer = await world.client.get(files)
        assert (answer.status_code, answer.content) == (200, b"")

    serve(scenario)


def test_a_torn_upload_leaves_what_was_there(serve):
    async def scenario(world):
        sandbox = await world.create()
        guest = world.guest(sandbox)
        guest.files["a"] = b"old"

        def half_a_put():
            with socket.socket(socket.AF_UNIX) as s:
                s.connect(world.path)
                s.sendall(
                    f"PUT /v1/sandboxes/{sandbox}/files?path=a HTTP/1.1\r\n"
                    "Host: c\r\nContent-Length: 1000000\r\n\r\n".encode()
                    + bytes(200_000)
                )

        await anyio.to_thread.run_sync(half_a_put)
        await until(lambda: guest.torn == ["a"])
        assert guest.files["a"] == b"old"

    serve(scenario)


def test_a_download_nobody_reads_is_left_when_the_client_goes(serve):
    async def scenario(world):
        sandbox = await world.create()
        guest = world.guest(sandbox)
        guest.files["big"] = bytes(32 * 2**20)
        async with world.client.stream("GET", f"/v1/sandboxes/{sandbox}/files?path=big") as answer:
            await anext(answer.aiter_bytes())
        handle = world.sandboxes.get("local", sandbox)
        await until(lambda: handle.usage._busy == 0)

    serve(scenario)


def test_16_mib_each_way(serve, record_property):
    data = os.urandom(16 * 2**20)

    async def scenario(world):
        sandbox = await world.create()
        path = f"/v1/sandboxes/{sandbox}/files?path=big"
        start = time.perf_counter()
        await world.client.put(path, content=data)
        put_s = time.perf_counter() - start
        start = time.perf_counter()
        assert (await world.client.get(path)).content == data
        get_s = time.perf_counter() - start
        record_property("put_mb_per_s", 16.8 / put_s)
        record_property("get_mb_per_s", 16.8 / get_s)
        print(f"put {16.8 / put_s:.0f} MB/s, get {16.8 / get_s:.0f} MB/s")

    serve(scenario)
