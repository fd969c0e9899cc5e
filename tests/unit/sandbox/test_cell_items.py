"""A cell's channel, with the agent's end in the test's hands: what an honest one says, and what none does."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import anyio
import pytest
from test_link import Peer, linked

from casemate import wire
from casemate.errors import AgentSilent, GuestError, InvalidSpec, ProtocolViolation
from casemate.sandbox import bundles, cells
from casemate.sandbox.cells import Begun, Queued, Refused, Result, RunCell
from casemate.sandbox.execs import Output

END = {"end": {"kind": "ok"}, "execution_count": 1, "duration_ms": 1, "files_changed": [], "files_cut": 0} | {
    "left_out": {"results": 2, "result_bytes": 9}
}
BODY = json.dumps({"type": "result", "data": {"text/plain": "2"}}).encode()


def followed(say: Callable[[Callable[[int, bytes], None], Callable[..., None]], None]) -> list[cells.Item]:
    """What is read of a cell whose agent says what *say* has it say."""
    items: list[cells.Item] = []

    async def run() -> None:
        async with linked() as (link, peer), anyio.create_task_group() as tasks:
            tasks.start_soon(_agent, peer, say)
            with anyio.fail_after(20):
                async with cells.run(link, "1+1", RunCell()) as cell:
                    while not items or not isinstance(items[-1], cells.CellEnded):
                        items.append(await cell.read())

    anyio.run(run)
    return items


async def _agent(peer: Peer, say: Callable[..., None]) -> None:
    opened = await peer.hear(wire.Opened)
    assert isinstance(opened, wire.Opened)
    number = opened.channel
    peer.connection.accept(number, {"cell_id": opened.params["cell_id"], "context": "default", "place": 0})

    def put(sub: int, data: bytes) -> None:
        assert peer.connection.send(number, sub, data) == len(data)

    def tell(event: str, **more: Any) -> None:
        peer.connection.send_message(number, {"event": event, **more})

    say(put, tell)
    peer.connection.finish(number)
    await peer.speak()


def test_what_an_honest_agent_says() -> None:
    def say(put: Any, tell: Any) -> None:
        tell("queued", place=1)
        tell("begun", execution_count=1)
        put(1, b"out")
        tell("result", size=len(BODY))
        put(3, BODY)
        put(2, b"err")
        tell("end", **END)

    queued, begun, out, result, err, end = followed(say)
    assert (queued, begun) == (Queued(1), Begun(1))
    assert (out, err) == (Output("stdout", 0, b"out"), Output("stderr", 3 + len(BODY), b"err"))
    assert isinstance(result, Result)
    assert (result.offset, json.loads(result.body)["data"]) == (3, {"text/plain": "2"})
    assert isinstance(end, cells.CellEnded)
    assert (end.left_out.results, end.left_out.result_bytes) == (2, 9)


def test_a_result_comes_in_pieces_of_any_size() -> None:
    def say(put: Any, tell: Any) -> None:
        tell("result", size=len(BODY))
        for byte in BODY:
            put(3, bytes([byte]))
        tell("end", **END)

    assert isinstance(followed(say)[0], Result)


def test_what_a_context_made_up_is_counted_with_what_the_agent_left_out() -> None:
    def say(put: Any, tell: Any) -> None:
        tell("result", size=3)
        put(3, b"???")
        tell("result", size=0)
        tell("end", **END)

    refused, empty, end = followed(say)
    assert (refused, empty) == (Refused(0, 3, "not JSON"), Refused(3, 0, "not JSON"))
    assert isinstance(end, cells.CellEnded)
    assert (end.left_out.results, end.left_out.result_bytes) == (4, 12)


@pytest.mark.parametrize(
    "lie",
    [
        lambda put, tell: put(3, b"x"),
        lambda put, tell: tell("result", size=-1),
        lambda put, tell: tell("result", size="1"),
        lambda put, tell: (tell("result", size=2), put(3, b"xyz")),
        lambda put, tell: (tell("result", size=2), put(1, b"x")),
        lambda put, tell: (tell("result", size=2), tell("end", **END)),
        lambda put, tell: tell("result", size=2),
        lambda put, tell: tell("begun"),
        lambda put, tell: tell("queued", place=True),
        lambda put, tell: tell("sleeping"),
        lambda put, tell: tell("end"),
        lambda put, tell: tell("end", **END | {"end": {"kind": "sandbox-died", "reason": {}}}),
        lambda put, tell: tell("end", **END | {"files_changed": [{"path": "/a", "change": "seen"}]}),
        lambda put, tell: tell("end", **END | {"left_out": {"results": -1, "result_bytes": 0}}),
    ],
)  # fmt: skip
def test_what_no_agent_says_is_a_violation(lie: Callable[..., None]) -> None:
    with pytest.raises(BaseExceptionGroup) as caught:
        followed(lie)
    assert caught.group_contains(ProtocolViolation)


def test_an_agent_that_lets_go_of_it_is_no_violation() -> None:
    with pytest.raises(BaseExceptionGroup) as caught:
        followed(lambda put, tell: put(1, b"out"))
    assert caught.group_contains(GuestError, match="let go of cell")
    assert not caught.group_contains(ProtocolViolation)


def test_an_agent_that_does_not_take_the_code_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cells, "START_TIMEOUT_S", 0.5)

    async def agent(peer: Peer) -> None:
        opened = await peer.hear(wire.Opened)
        assert isinstance(opened, wire.Opened)
        peer.connection.accept(opened.channel, {"cell_id": "c", "context": "default", "place": 0})
        await peer.speak()

    async def run() -> None:
        async with linked() as (link, peer), anyio.create_task_group() as tasks:
            tasks.start_soon(agent, peer)
            with anyio.fail_after(20), pytest.raises(AgentSilent):
                async with cells.run(link, "#" * 2**21, RunCell()):
                    raise AssertionError

    anyio.run(run)


def test_a_result_that_is_too_large_is_not_kept() -> None:
    """All of it is taken off the wire, in windows, and nothing of it held."""
    size = bundles.MAX_BYTES + 1
    seen: list[cells.Item] = []

    async def agent(peer: Peer) -> None:
        opened = await peer.hear(wire.Opened)
        assert isinstance(opened, wire.Opened)
        peer.connection.accept(opened.channel, {"cell_id": "c", "context": "default", "place": 0})
        peer.connection.send_message(opened.channel, {"event": "result", "size": size})
        left = size
        while left:
            taken = peer.connection.send(opened.channel, 3, bytes(min(left, 65_536)))
            left -= taken
            await peer.speak()
            if not taken:
                await peer.hear(wire.Writable)
        peer.connection.send_message(opened.channel, {"event": "end", **END})
        await peer.speak()

    async def run() -> None:
        async with linked() as (link, peer), anyio.create_task_group() as tasks:
            tasks.start_soon(agent, peer)
            with anyio.fail_after(30):
                async with cells.run(link, "", RunCell()) as cell:
                    seen.append(await cell.read())
                    assert isinstance(await cell.read(), cells.CellEnded)

    anyio.run(run)
    assert seen == [Refused(0, size, f"over {bundles.MAX_BYTES} bytes")]


@pytest.mark.parametrize(
    "wish",
    [
        {"context": "a b"},
        {"context": ""},
        {"timeout_s": 0},
        {"timeout_s": 1e9},
        {"grace_s": -1},
        {"user": "a\0"},
        {"stdin": bytes(cells.MAX_BYTES + 1)},
    ],
)
def test_a_wish_that_makes_no_sense(wish: dict[str, Any]) -> None:
    with pytest.raises(InvalidSpec):
        RunCell(**wish)
