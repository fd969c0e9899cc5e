"""The API's client against a peer that answers what the test says: rightly, wrongly, late, never, too much."""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from anyio.abc import SocketStream
from hypothesis import given
from hypothesis import strategies as st

from casemate.errors import CasemateError, Retry, StateConflict, VmmExited, VmmRefused
from casemate.vmm.firecracker import calls
from casemate.vmm.firecracker.api import BODY_BYTES, HEAD_BYTES, Api, open_api
from casemate.vmm.firecracker.calls import Call

DONE = b"HTTP/1.1 204 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n\r\n"  # as the real one says it


def answer(status: int, body: bytes, *more: str) -> bytes:
    head = [f"HTTP/1.1 {status} Said", *more, f"Content-Length: {len(body)}", "", ""]
    return "\r\n".join(head).encode() + body


class Peer:
    """The other end: reads whole requests, sends what it is told to."""

    def __init__(self, stream: SocketStream) -> None:
        self.stream = stream
        self._data = b""

    async def request(self) -> tuple[str, Any]:
        while b"\r\n\r\n" not in self._data:
            self._data += await self.stream.receive()
        head, _, rest = self._data.partition(b"\r\n\r\n")
        lines = head.decode().split("\r\n")
        fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        length = int(fields.get("content-length", 0))
        while len(rest) < length:
            rest += await self.stream.receive()
        self._data = rest[length:]
        return lines[0], json.loads(rest[:length]) if length else None

    async def answer(self, data: bytes) -> None:
        await self.stream.send(data)


@asynccontextmanager
async def opened() -> AsyncIterator[tuple[Api, Peer]]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    async with await SocketStream.from_socket(theirs) as stream, open_api(ours, "abc") as api:
        yield api, Peer(stream)


def run(main: Callable[[Api, Peer], Awaitable[None]]) -> None:
    async def opening() -> None:
        with anyio.fail_after(10):
            async with opened() as (api, peer):
                await main(api, peer)

    anyio.run(opening)


async def told(api: Api, peer: Peer, data: bytes, call: Call | None = None) -> Any:
    """What a call comes to when *data* is its answer."""

    async def answering() -> None:
        await peer.request()
        await peer.answer(data)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(answering)
        try:
            return await api.do(call or calls.version())
        except CasemateError as error:
            return error
    raise AssertionError("unreachable")


def test_calls_one_after_another_over_one_connection() -> None:
    async def main(api: Api, peer: Peer) -> None:
        seen = []

        async def answering() -> None:
            for data in (answer(200, b'{"firecracker_version":"1.15.1"}'), DONE, DONE):
                seen.append(await peer.request())
                await peer.answer(data)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(answering)
            assert await api.do(calls.version()) == {"firecracker_version": "1.15.1"}
            assert await api.do(calls.set_state("Paused")) is None
            assert await api.do(calls.start()) is None
        assert seen == [
            ("GET /version HTTP/1.1", None),
            ("PATCH /vm HTTP/1.1", {"state": "Paused"}),
            ("PUT /actions HTTP/1.1", {"action_type": "InstanceStart"}),
        ]

    run(main)


def test_an_answer_in_pieces() -> None:
    async def main(api: Api, peer: Peer) -> None:
        data = answer(200, b'{"firecracker_version":"1.15.1"}')

        async def answering() -> None:
            await peer.request()
            for byte in data:
                await peer.answer(bytes([byte]))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(answering)
            assert await api.do(calls.version()) == {"firecracker_version": "1.15.1"}

    run(main)


def test_calls_at_the_same_time_take_turns() -> None:
    async def main(api: Api, peer: Peer) -> None:
        order: list[int] = []

        async def asking(number: int) -> None:
            assert await api.do(calls.machine_config(1, number)) == {"n": number}
            order.append(number)

        async with anyio.create_task_group() as tasks:
            for number in range(1, 4):
                tasks.start_soon(asking, number)
            for _ in range(3):
                _, body = await peer.request()
                assert peer._data == b""  # the next has not been sent yet
                await peer.answer(answer(200, json.dumps({"n": body["mem_size_mib"]}).encode()))
        assert order == [1, 2, 3]

    run(main)


def test_a_refusal_says_why() -> None:
    async def main(api: Api, peer: Peer) -> None:
        said = json.dumps({"fault_message": "Invalid\x1b[31m vCPU\n count"}).encode()
        refused = await told(api, peer, answer(400, said), calls.machine_config(1, 128))
        assert isinstance(refused, VmmRefused)
        assert refused.message == "guest abc: PUT /machine-config: Invalid [31m vCPU count"
        assert refused.evidence == {"call": "PUT /machine-config", "status": 400, "fault": "Invalid [31m vCPU count"}
        assert await told(api, peer, DONE) is None  # and the connection is as good as before

    run(main)


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        (b"", "no reason given"),
        (b"not json", "not json"),
        (b'{"fault_message":3}', '{"fault_message":3}'),
        (b"[]", "[]"),
    ],
)
def test_a_refusal_that_is_no_fault_message(body: bytes, fault: str) -> None:
    async def main(api: Api, peer: Peer) -> None:
        refused = await told(api, peer, answer(500, body))
        assert isinstance(refused, VmmRefused)
        assert (refused.evidence["status"], refused.evidence["fault"]) == (500, fault)

    run(main)


def test_a_long_fault_is_cut() -> None:
    async def main(api: Api, peer: Peer) -> None:
        refused = await told(api, peer, answer(400, json.dumps({"fault_message": "x" * 900_000}).encode()))
        assert isinstance(refused, VmmRefused)
        assert len(str(refused)) < 1100

    run(main)


NONSENSE = {
    "no HTTP": b"+OK hello\r\n\r\n",
    "another protocol": b"SSH-2.0-x\r\n",
    "no JSON": answer(200, b"{"),
    "no text": answer(200, b"\xff\xfe"),
    "deep JSON": answer(200, b"[" * 100_000),
    "a long head": b"HTTP/1.1 200 OK\r\n" + b"X-Y: z\r\n" * (HEAD_BYTES // 4),
    "an endless field": b"HTTP/1.1 200 OK\r\nX: " + b"y" * (2 * HEAD_BYTES),
    "a long body": answer(200, b'"' + b"x" * BODY_BYTES + b'"'),
    "a long length": b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999999\r\n\r\n",
    "two answers": DONE + DONE,
    "another protocol's upgrade": b"HTTP/1.1 101 Go\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nxyz",
    "much framing": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1;aaaaaaaaaaaa\r\nx\r\n" * 80_000,
}


@pytest.mark.parametrize("data", NONSENSE.values(), ids=NONSENSE.keys())
def test_nonsense_ends_the_conversation(data: bytes) -> None:
    async def main(api: Api, peer: Peer) -> None:
        async def answering() -> None:
            await peer.request()
            try:
                await peer.answer(data)
            except (OSError, anyio.BrokenResourceError):
                return  # more than anybody wanted

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(answering)
            with pytest.raises(VmmRefused, match="answered by") as refused:
                await api.do(calls.version())
            assert len(str(refused.value)) < 300
            with pytest.raises(VmmRefused, match="answered by"):  # at once: the peer does not read any more
                await api.do(calls.version())
            tasks.cancel_scope.cancel()

    run(main)


@given(st.binary(max_size=400), st.integers(1, 50))
def test_whatever_it_answers_is_an_error_of_ours_or_json(data: bytes, step: int) -> None:
    async def main(api: Api, peer: Peer) -> None:
        async def answering() -> None:
            await peer.request()
            for start in range(0, len(data), step):
                await peer.answer(data[start : start + step])
            await peer.stream.send_eof()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(answering)
            with pytest.raises((VmmRefused, VmmExited)):
                await api.do(calls.version())

    run(main)


@pytest.mark.parametrize("data", [b"", DONE[:-3], answer(200, b"{}")[:-1]])
def test_a_stream_that_ends(data: bytes) -> None:
    async def main(api: Api, peer: Peer) -> None:
        async def answering() -> None:
            await peer.request()
            if data:
                await peer.answer(data)
            await peer.stream.aclose()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(answering)
            for _ in range(2):
                with pytest.raises(VmmExited, match="ended during GET /version"):
                    await api.do(calls.version())

    run(main)


def test_a_vmm_that_is_gone_before_it_is_asked() -> None:
    async def main(api: Api, peer: Peer) -> None:
        await peer.stream.aclose()
        with pytest.raises(VmmExited):
            await api.do(calls.version())

    run(main)


def test_a_late_answer_is_not_the_next_ones() -> None:
    async def main(api: Api, peer: Peer) -> None:
        with pytest.raises(VmmRefused, match=r"not answered in 0\.05 s") as late:
            await api.do(calls.version(), timeout_s=0.05)
        assert late.value.retry is Retry.UNKNOWN
        with anyio.move_on_after(0.05):
            await api.do(calls.instance())
        await peer.request()
        await peer.answer(answer(200, b'"late"'))
        await peer.request()
        await peer.answer(answer(200, b'"cancelled"'))
        assert await told(api, peer, answer(200, b'"mine"')) == "mine"

    run(main)


def test_a_request_that_was_cut_off_is_finished_by_the_next_call() -> None:
    """The peer reads nothing at first, so the socket is full in the middle of one."""
    long = calls.boot_source("/kernel", None, "x" * 3_000_000)

    async def answering(peer: Peer) -> None:
        assert (await peer.request())[1] == long.body
        await peer.answer(answer(200, b'"late"'))
        assert (await peer.request())[0].startswith("GET /version")
        await peer.answer(answer(200, b'"mine"'))

    async def main() -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        async with open_api(ours, "abc") as api:
            with anyio.move_on_after(0.05) as scope:
                await api.do(long)
            assert scope.cancelled_caught
            async with await SocketStream.from_socket(theirs) as stream, anyio.create_task_group() as tasks:
                tasks.start_soon(answering, Peer(stream))
                assert await api.do(calls.version()) == "mine"

    anyio.run(main)


def test_a_frozen_vmm_is_not_asked() -> None:
    async def main(api: Api, peer: Peer) -> None:
        async with api.idle:
            api.frozen = True
        with pytest.raises(StateConflict, match="frozen: GET /version"):
            await api.do(calls.version())
        api.frozen = False
        assert await told(api, peer, answer(200, b'"thawed"')) == "thawed"

    run(main)


def test_leaving_closes_under_a_call() -> None:
    async def main(api: Api, peer: Peer) -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)

        async def asking() -> None:
            with pytest.raises(VmmExited):
                await inner.do(calls.version())

        with theirs:
            async with anyio.create_task_group() as tasks, open_api(ours, "abc") as inner:
                tasks.start_soon(asking)
                await anyio.wait_all_tasks_blocked()
        assert ours.fileno() == -1

    run(main)
