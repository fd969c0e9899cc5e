"""Any bytes, cut anyhow: they mean what they say, or they end in ProtocolViolation; never more, never much memory."""

from __future__ import annotations

import time
import tracemalloc
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from peers import NONCE, chunks, drain

from casemate.errors import ProtocolViolation
from casemate.wire import MAX_PAYLOAD, Connection, Event, Side
from casemate.wire.bodies import load
from casemate.wire.frames import HEADER, pack

SIZES = st.lists(st.integers(1, 70_000), min_size=1, max_size=5)
LARGEST = MAX_PAYLOAD + HEADER.size


def conversation() -> bytes:
    """What an honest host says in a long talk."""
    host = Connection(Side.HOST, nonce=NONCE)
    host.synchronise()
    host.hello({"generation": 1, "text": "ünï", "list": [1, [2, {"x": None}]]})
    said = drain(host)
    for index in range(3):
        number = host.open("exec", {"argv": ["a"] * index})
        host.send(number, 1, bytes(range(256)) * (index * 300 + 1))
        host.send_message(number, {"op": "stdin-eof"})
        host.ping(bytes([index]) * 8)
        said += drain(host)
        host.finish(number) if index else host.reset(number, "x")
        said += drain(host)
    return said


SAID = conversation()


def told(data: list[bytes]) -> list[Event]:
    """The events of an agent, with neighbouring data of a channel joined: where it is cut means nothing."""
    guest = Connection(Side.GUEST)
    return [event for piece in data for event in guest.receive(piece)]


WHOLE = told([SAID])


@given(SIZES)
def test_any_chunking_says_the_same(sizes: list[int]) -> None:
    assert told(chunks(SAID, sizes)) == WHOLE


def test_one_byte_at_a_time_says_the_same() -> None:
    assert told(chunks(SAID[:20_000], [1])) == told([SAID[:20_000]])


def answers(side: Side, data: list[bytes]) -> None:
    """Feed an end; all it may do is raise ProtocolViolation."""
    end = Connection(side, nonce=NONCE if side is Side.HOST else None)
    with suppress(ProtocolViolation):
        for piece in data:
            end.receive(piece)
            end.outgoing()


FRAMES = st.builds(
    lambda kind, channel, sub, body: pack(kind, channel, body, sub),
    st.integers(0, 20),
    st.integers(0, 9),
    st.integers(0, 3),
    st.binary(max_size=300)
    | st.sampled_from([b"{}", b'{"kind":"exec"}', b'{"a":' * 40, b"[" * 200, b"\x00", b"8bytes!!"]),
)
SYNC = pack(1, 0, b"\xcaCASEMATE-SYNC-1" + NONCE)


@given(st.lists(FRAMES, max_size=30), SIZES, st.sampled_from(Side))
def test_frames_no_honest_peer_sends(frames: list[bytes], sizes: list[int], side: Side) -> None:
    answers(side, chunks(SYNC + b"".join(frames), sizes))


@given(st.integers(0, len(SAID) - 1), st.integers(1, 255), SIZES)
def test_one_changed_byte(at: int, change: int, sizes: list[int]) -> None:
    answers(Side.GUEST, chunks(SAID[:at] + bytes([SAID[at] ^ change]) + SAID[at + 1 :], sizes))


@given(st.binary(max_size=5000), SIZES, st.sampled_from(Side), st.booleans())
def test_noise(noise: bytes, sizes: list[int], side: Side, synced: bool) -> None:
    answers(side, chunks((SYNC if synced else b"") + noise, sizes))


BOMBS = [
    HEADER.pack(0xFFFFFFFF, 1, 5, 1, 0) + bytes(1000),
    HEADER.pack(MAX_PAYLOAD, 0, 11, 0, 0) + b"[" * MAX_PAYLOAD,
    pack(11, 0, b'{"a":' * 10_000),
    pack(11, 0, b'{"a":[' + b"[]," * 20_000 + b"[]]}"),
    pack(11, 0, b'{"a":"' + b"\\ud83d\\ude00" * 5000 + b'"'),
    pack(11, 0, b'{"a":' + b"9" * 5000 + b"}"),
    pack(11, 0, b'{"a":"' + b"x" * 61_000),
    bytes(1 << 20) + b"no SYNC",
]


@pytest.mark.parametrize("bomb", BOMBS, ids=range(len(BOMBS)))
@pytest.mark.parametrize("step", [1000, 1 << 20])
def test_a_bomb_costs_no_more_than_two_frames(bomb: bytes, step: int) -> None:
    data = chunks(SYNC + bomb, [step])
    guest = Connection(Side.GUEST)
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolViolation):
            [guest.receive(piece) for piece in data]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak <= 2 * LARGEST + 4096, peak


@pytest.mark.parametrize("end", ["", "\\"])
def test_a_text_without_an_end_is_looked_at_once(end: str) -> None:
    """Not once from each quote in it."""
    text = '{"a":' + "[]" * 20 + '"' + '\\"' * 30_000 + end
    began = time.thread_time()
    with pytest.raises(ProtocolViolation):
        load(text)
    assert time.thread_time() - began < 0.5
