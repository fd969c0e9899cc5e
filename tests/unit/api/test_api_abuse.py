"""Clients that send too much, too slowly, too often, or stop in the middle: each costs a bounded amount."""

from __future__ import annotations

import json
import os
import socket
import struct
from contextlib import ExitStack
from dataclasses import replace

import anyio
import pytest
from api_world import until
from tests.fair import fair_clock

from casemate.api import reading
from casemate.api.connections import Limits
from casemate.config import Settings

CHUNKED = b"POST /v1/sandboxes HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
QUICK = Limits(head_s=0.5, stall_s=0.5, max_waiting=50)


def connect(world, unix=False):
    if unix:
        made = socket.socket(socket.AF_UNIX)
        made.connect(world.path)
    else:
        made = socket.create_connection(("127.0.0.1", world.port))
    made.settimeout(10)
    return made


def read_all(connection):
    """What came until the other end closed or reset."""
    found = b""
    while True:
        try:
            piece = connection.recv(65_536)
        except ConnectionResetError:
            return found
        if not piece:
            return found
        found += piece


def in_thread(call, *arguments):
    return anyio.to_thread.run_sync(call, *arguments)


async def still_serving(world):
    with anyio.fail_after(5):
        assert (await world.client.get("/v1/health")).status_code == 200


def resident_mib():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * 4096 / 2**20


def flood(world, begin, piece, total):
    """Send *begin* and then *piece* after piece, until we are refused; what was sent and what came back."""
    with connect(world) as connection:
        sent = 0
        try:
            connection.sendall(begin)
            while sent < total:
                connection.sendall(piece)
                sent += len(piece)
        except (BrokenPipeError, ConnectionResetError):
            pass
        return sent, read_all(connection)


@pytest.mark.parametrize(
    ("begin", "piece"),
    [
        (b"GET /v1/health HTTP/1.1\r\nHost: localhost\r\nX: ", b"a" * 65_536),
        (b"GET /v1/health HTTP/1.1\r\nHost: localhost\r\n", b"X-A: b\r\n" * 8192),
        (b"GET /", b"a" * 65_536),
        (
            b"POST /v1/sandboxes HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: ",
            b"a" * 65_536,
        ),
        (b"POST /v1/sandboxes HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n1;x=", b"a" * 65_536),
    ],
    ids=["one header", "many headers", "a path", "a trailer", "a chunk's extension"],
)
def test_ten_megabytes_of_head_are_not_taken(serve, begin, piece):
    async def scenario(world):
        before = resident_mib()
        sent, answer = await in_thread(flood, world, begin, piece, 10 << 20)
        assert sent < 8 << 20
        assert answer == b"" or answer.startswith((b"HTTP/1.1 431", b"HTTP/1.1 400", b"HTTP/1.1 401"))
        assert resident_mib() - before < 20
        await still_serving(world)

    serve(scenario)


def test_a_head_that_trickles_has_a_deadline(serve):
    def trickle(world):
        begun = fair_clock()
        with connect(world) as connection:
            connection.settimeout(0.1)
            connection.sendall(b"GET /v1/health HTTP/1.1\r\nHost: localhost\r\n")
            answer = b""
            while fair_clock() - begun < 10:
                try:
                    connection.sendall(b"X: a\r\n")
                    piece = connection.recv(65_536)
                except TimeoutError:
                    continue
                except (BrokenPipeError, ConnectionResetError):
                    break
                if not piece:
                    break
                answer += piece
            return fair_clock() - begun, answer

    async def scenario(world):
        took_s, answer = await in_thread(trickle, world)
        assert took_s < 2
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 408")
        assert json.loads(body)["code"] == "bad-request"
        await still_serving(world)

    serve(scenario, limits=QUICK)


def test_a_second_head_that_trickles_has_one_too(serve):
    def trickle(world):
        with connect(world, unix=True) as connection:
            connection.sendall(b"GET /v1/health HTTP/1.1\r\nHost: c\r\n\r\n")
            assert connection.recv(65_536).startswith(b"HTTP/1.1 200")
            begun = fair_clock()
            connection.settimeout(0.1)
            while fair_clock() - begun < 10:
                try:
                    connection.sendall(b"G" if fair_clock() - begun < 0.05 else b"")
                    if not connection.recv(65_536):
                        break
                except TimeoutError:
                    continue
                except (BrokenPipeError, ConnectionResetError):
                    break
            return fair_clock() - begun

    async def scenario(world):
        assert await in_thread(trickle, world) < 2

    serve(scenario, limits=QUICK)


def test_a_body_that_trickles_has_a_deadline(serve, monkeypatch):
    monkeypatch.setattr(reading, "BODY_S", 0.5)

    def trickle(world):
        begun = fair_clock()
        with connect(world, unix=True) as connection:
            connection.sendall(b"POST /v1/sandboxes HTTP/1.1\r\nHost: c\r\nContent-Length: 100000\r\n\r\n{")
            connection.settimeout(0.05)
            answer = b""
            while fair_clock() - begun < 10:
                try:
                    connection.sendall(b" ")
                    piece = connection.recv(65_536)
                except TimeoutError:
                    continue
                except (BrokenPipeError, ConnectionResetError):
                    break
                if not piece:
                    break
                answer += piece
            return fair_clock() - begun, answer

    async def scenario(world):
        took_s, answer = await in_thread(trickle, world)
        assert answer.startswith(b"HTTP/1.1 408")
        assert took_s < 5  # also the connection ends, though bytes kept coming
        await still_serving(world)

    serve(scenario)


def test_a_file_that_stops_coming_frees_its_channel(serve, monkeypatch):
    monkeypatch.setattr(reading, "PIECE_S", 0.5)

    async def scenario(world):
        sandbox = await world.create()

        async def stuck():
            yield b"some"
            await anyio.sleep(1.5)
            yield b"more"

        answer = await world.client.put(f"/v1/sandboxes/{sandbox}/files?path=/tmp/a", content=stuck())
        assert (answer.status_code, answer.json()["code"]) == (408, "bad-request")
        assert not world.guest(sandbox).uploads

    serve(scenario)


def test_a_thousand_connections_do_not_keep_others_out(serve):
    async def scenario(world):
        key = await world.key()
        with ExitStack() as held:

            def open_many():
                for _ in range(1000):
                    held.enter_context(connect(world)).sendall(b"GET / HTTP/1.1\r\n")

            await in_thread(open_many)
            async with world.over_tcp(key) as client:
                with anyio.fail_after(5):
                    assert (await client.get("/v1/health")).status_code == 200
            await still_serving(world)
        await still_serving(world)

    serve(scenario)


def test_those_that_wait_longest_make_room(serve):
    async def scenario(world):
        with ExitStack() as held:
            made = [held.enter_context(connect(world)) for _ in range(60)]
            await anyio.sleep(0.2)
            gone = await in_thread(lambda: [read_all(connection) for connection in made[:10]])
            assert gone == [b""] * 10
            made[59].sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert (await in_thread(made[59].recv, 65_536)).startswith(b"HTTP/1.1 401")

    serve(scenario, limits=replace(QUICK, head_s=10))


def test_more_connections_than_there_may_be_are_told_so(serve):
    async def scenario(world):
        with ExitStack() as held:
            made = [held.enter_context(connect(world)) for _ in range(8)]
            answer = await in_thread(read_all, made[7])
            assert answer.startswith(b"HTTP/1.1 503")
            assert b"retry-after: 1" in answer

    serve(scenario, limits=Limits(max_connections=5))


def start_flood(world, sandbox, unix):
    """A client under way: its exec writes without end, and it has read the beginning."""
    connection = connect(world, unix)
    body = json.dumps({"argv": ["flood", str(1 << 40)], "on_disconnect": "kill"}).encode()
    key = "" if unix else f"Authorization: Bearer {world.secret}\r\n"
    head = f"POST /v1/sandboxes/{sandbox}/execs HTTP/1.1\r\nHost: localhost\r\n{key}Content-Length: {len(body)}\r\n\r\n"
    connection.sendall(head.encode() + body)
    assert connection.recv(1000).startswith(b"HTTP/1.1 200")
    return connection


def is_done(guest):
    return bool(guest.programs) and all(program.end is not None for program in guest.programs.values())


@pytest.mark.parametrize("unix", [True, False], ids=["unix", "tcp"])
@pytest.mark.parametrize("way", ["close", "reset", "stopped"])
def test_a_client_that_goes_in_mid_stream_frees_the_channel(serve, way, unix):
    async def scenario(world):
        world.secret = await world.key()
        sandbox = await world.create()
        connection = await in_thread(start_flood, world, sandbox, unix)
        try:
            if way == "reset":
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            if way != "stopped":  # one that is stopped holds its end open and reads no more
                connection.close()
            await until(lambda: is_done(world.guest(sandbox)), within_s=10)
            await still_serving(world)
            assert (await world.run(sandbox, "echo", "x"))[-1]["event"] == "end"
        finally:
            connection.close()

    serve(scenario, limits=Limits(stall_s=0.5))


def test_a_slow_reader_is_not_a_stopped_one(serve):
    async def scenario(world):
        sandbox = await world.create()
        connection = await in_thread(start_flood, world, sandbox, True)
        begun = fair_clock()
        while fair_clock() - begun < 2:
            await anyio.sleep(0.05)
            assert await in_thread(connection.recv, 1 << 20)
        assert not is_done(world.guest(sandbox))
        connection.close()

    serve(scenario, limits=Limits(stall_s=0.5))


TCP_REPAIR = 19  # Source: linux/tcp.h


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a socket vanish without a word")
def test_a_peer_that_vanished_is_noticed(serve):
    """Half open: no FIN, no RST; the next words to it find nobody there."""

    async def scenario(world):
        world.secret = await world.key()
        sandbox = await world.create()
        connection = await in_thread(start_flood, world, sandbox, False)
        try:
            connection.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
        except PermissionError:
            connection.close()
            pytest.skip("this root has no CAP_NET_ADMIN")
        connection.close()
        await until(lambda: is_done(world.guest(sandbox)), within_s=10)
        await still_serving(world)

    serve(scenario, limits=Limits(stall_s=1))


REFS = [
    "..%2f..%2fetc",
    "%2e%2e",
    "a%00b",
    "a" * 5000,
    "%F0%9F%92%A9",
    "'; DROP TABLE",
    "%",
    "x%2Fexecs",
    "*",
    "__class__",
]


# The last one: with a slash in it, a ref is the beginning of another route's path
REFUSALS = [(404, "not-found"), (400, "bad-request"), (405, "bad-request")]


@pytest.mark.parametrize("ref", REFS)
def test_a_ref_that_is_none_is_not_found(serve, ref):
    async def scenario(world):
        sandbox = await world.create()
        for path in (f"/v1/sandboxes/{ref}", f"/v1/sandboxes/{ref}/files?path=a", f"/v1/images/{ref}"):
            answer = await world.client.get(path)
            assert (answer.status_code, answer.json()["code"]) in REFUSALS, path
            assert len(answer.content) < 2000
        assert (await world.client.get(f"/v1/sandboxes/{sandbox}/../../v1/health")).status_code in (200, 404)
        await still_serving(world)

    serve(scenario)


def test_nonsense_in_every_shape_is_answered(serve):
    async def scenario(world):
        def say(data):
            with connect(world, unix=True) as connection:
                connection.sendall(data)
                connection.shutdown(socket.SHUT_WR)
                return read_all(connection)

        for data in (
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS where there is none
            b"GET / HTTP/9.9\r\n\r\n",
            b"GET /%ff%fe HTTP/1.1\r\nHost: c\r\nConnection: close\r\n\r\n",
            CHUNKED.replace(b"\r\n\r\n", b"\r\nContent-Length: 5\r\n\r\n") + b"0\r\n\r\n",
            b"POST /v1/sandboxes HTTP/1.1\r\nHost: c\r\nContent-Length: -1\r\n\r\n",
            b"POST /v1/sandboxes HTTP/1.1\r\nHost: c\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
            b"GET /v1/health HTTP/1.1\r\nHost: c\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
            b"CONNECT evil.example:80 HTTP/1.1\r\nHost: evil.example:80\r\n\r\n",
            b"GET http://evil.example/v1/health HTTP/1.1\r\nHost: c\r\nConnection: close\r\n\r\n",
            b"\r\n\r\n\r\n",
        ):
            with anyio.fail_after(15):
                answer = await in_thread(say, data)
            assert answer == b"" or answer.startswith(b"HTTP/1.1 "), answer[:200]
            assert not answer.startswith(b"HTTP/1.1 5"), (data, answer)
            await still_serving(world)

    serve(scenario, limits=QUICK)


def test_the_default_limits_are_those_of_the_reference():
    from pathlib import Path

    text = (Path(__file__).resolve().parents[3] / "docs" / "reference.md").read_text()
    limits = Limits()
    said = f"within {limits.head_s:g} s and {limits.head_bytes >> 10} KiB"
    assert said in text
    assert f"within {reading.BODY_S:g} s and {reading.MAX_JSON_BYTES >> 20} MiB" in text
    assert limits.stall_s == Settings(home=Path("/")).client_stall_s
