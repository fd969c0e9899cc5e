"""Channels, credit and their ends, one end against the other."""

from __future__ import annotations

import tracemalloc

import pytest
from peers import NONCE, Pair, drain

from casemate.errors import InvalidSpec, ProtocolViolation, StateConflict
from casemate.wire import (
    MAX_CHANNELS,
    MAX_PAYLOAD,
    WINDOW,
    Accepted,
    Closed,
    Connection,
    Data,
    Denied,
    Finished,
    Hello,
    Message,
    Opened,
    Pong,
    Ready,
    Reset,
    Side,
    Synced,
    Writable,
)
from casemate.wire.connection import MAX_PINGS
from casemate.wire.frames import CREDIT, DATA, FIN, HEADER, PING, PREAMBLE, pack


@pytest.fixture
def pair() -> Pair:
    return Pair()


def test_a_connection_begins_on_both_ends() -> None:
    pair = Pair()
    assert pair.at_guest == [Synced(NONCE)]
    assert pair.at_host == [Synced(NONCE)]
    pair.host.hello({"a": 1})
    pair.run()
    pair.guest.ready({"b": "ü"})
    pair.run()
    assert pair.at_guest[-1] == Hello({"a": 1})
    assert pair.at_host[-1] == Ready({"b": "ü"})


def test_a_channel_from_its_opening_to_its_end(pair: Pair) -> None:
    number = pair.host.open("exec", {"argv": ["x"]})
    pair.host.send(number, 1, b"early")  # data may follow at once
    pair.run()
    assert pair.at_guest[-2:] == [Opened(number, "exec", {"argv": ["x"]}), Data(number, 1, b"early")]
    pair.guest.accept(number, {"pid": 7})
    pair.guest.send(number, 2, b"oops")
    pair.guest.send_message(number, {"event": "end"})
    pair.guest.finish(number)
    pair.host.finish(number)
    pair.run()
    told = [event for event in pair.at_host if not isinstance(event, Synced)]
    assert told[:4] == [Accepted(number, {"pid": 7}), Data(number, 2, b"oops"), Message(number, {"event": "end"}, 15),
                        Finished(number)]  # fmt: skip
    pair.guest.receive(b"")
    assert Closed(number) in pair.at_host + pair.host.receive(b"")


def test_a_refusal_says_why(pair: Pair) -> None:
    number = pair.host.open("dns", {})
    pair.run()
    pair.guest.deny(number, "not-served", "no broker", errno="ENOENT")
    pair.run()
    denied = pair.at_host[-1]
    assert isinstance(denied, Denied)
    assert (denied.code, denied.hint, denied.body["errno"]) == ("not-served", "no broker", "ENOENT")
    assert pair.host.send(number, 1, b"into the void") == 13


def test_a_window_is_all_that_is_sent_unread(pair: Pair) -> None:
    number = pair.open()
    data = bytes(WINDOW + 1)
    assert pair.guest.send(number, 1, data) == WINDOW
    pair.run()
    assert sum(event.size for event in pair.at_host if isinstance(event, Data)) == WINDOW
    assert pair.guest.send(number, 1, b"x") == 0
    pair.host.consumed(number, WINDOW)
    pair.run()
    assert Writable(number) in pair.at_guest
    assert pair.guest.send(number, 1, b"x") == 1


def test_small_pieces_cost_what_they_hold_the_peer_to(pair: Pair) -> None:
    number = pair.open()
    sent = 0
    while pair.guest.send(number, 1, b"x"):
        sent += 1
        pair.run()
    assert sent == WINDOW // 256


def test_data_beyond_the_window_ends_the_connection(pair: Pair) -> None:
    number = pair.open()
    for _ in range(WINDOW // MAX_PAYLOAD):
        pair.host.receive(pack(DATA, number, bytes(MAX_PAYLOAD), 1))
    with pytest.raises(ProtocolViolation, match="beyond the window"):
        pair.host.receive(pack(DATA, number, b"x", 1))
    with pytest.raises(ProtocolViolation):  # and for good
        pair.host.receive(b"")


def test_credit_nobody_owed_ends_the_connection(pair: Pair) -> None:
    number = pair.open()
    with pytest.raises(ProtocolViolation, match="credit"):
        pair.host.receive(pack(CREDIT, number, (1).to_bytes(4, "big")))


def test_data_after_the_end_ends_the_connection(pair: Pair) -> None:
    number = pair.open()
    pair.host.receive(pack(FIN, number))
    with pytest.raises(ProtocolViolation, match="after the end"):
        pair.host.receive(pack(DATA, number, b"x", 1))


def test_a_reset_channel_swallows_what_was_under_way(pair: Pair) -> None:
    number = pair.open()
    pair.guest.send(number, 1, bytes(WINDOW))
    under_way = drain(pair.guest)
    pair.host.reset(number, "closed")
    assert pair.host.receive(under_way) == []
    flood = pack(DATA, number, bytes(MAX_PAYLOAD), 1) * 200
    with pytest.raises(ProtocolViolation, match="gone"):
        pair.host.receive(flood)
    pair.guest.receive(drain(pair.host))


def test_the_guest_learns_of_a_reset(pair: Pair) -> None:
    number = pair.open()
    pair.host.reset(number, "closed", "left")
    pair.run()
    assert pair.at_guest == [Reset(number, "closed", "left")]


def test_a_channel_never_opened_is_a_violation(pair: Pair) -> None:
    with pytest.raises(ProtocolViolation, match="never opened"):
        pair.host.receive(pack(DATA, 77, b"x", 1))


def test_too_many_channels_are_refused_here_and_there(pair: Pair) -> None:
    for _ in range(MAX_CHANNELS):
        pair.host.open("exec", {})
    with pytest.raises(StateConflict):
        pair.host.open("exec", {})
    greedy = Connection(Side.HOST, nonce=NONCE, max_channels=MAX_CHANNELS + 1)
    for _ in range(MAX_CHANNELS + 1):
        greedy.open("exec", {})
    with pytest.raises(ProtocolViolation, match="too many channels"):
        Pair().guest.receive(drain(greedy))


def test_ids_are_never_used_twice(pair: Pair) -> None:
    seen = set()
    for _ in range(50):
        number = pair.host.open("exec", {})
        assert number not in seen
        seen.add(number)
        pair.host.reset(number, "closed")


def test_a_ping_overtakes_all_data(pair: Pair) -> None:
    numbers = [pair.open() for _ in range(8)]
    for number in numbers:
        pair.guest.send(number, 1, bytes(WINDOW))
    pair.host.ping(b"12345678")
    pair.guest.receive(drain(pair.host))
    first = pair.guest.outgoing()
    assert Pong(b"12345678") in pair.host.receive(first)
    assert first.find(b"12345678") < 2 * HEADER.size


def test_pings_are_bounded(pair: Pair) -> None:
    for number in range(MAX_PINGS):
        pair.host.ping(number.to_bytes(8, "big"))
    with pytest.raises(StateConflict):
        pair.host.ping(bytes(8))
    with pytest.raises(ProtocolViolation, match="flood"):
        pair.guest.receive(pack(PING, 0, bytes(8)) * 1000)


def test_a_silent_channel_goes_before_busy_ones(pair: Pair) -> None:
    busy = [pair.open() for _ in range(4)]
    for number in busy:
        pair.guest.send(number, 1, bytes(WINDOW))
    pair.guest.outgoing()
    quiet = pair.open()
    pair.guest.send(quiet, 1, b"me")
    told = [event.channel for event in pair.host.receive(pair.guest.outgoing()) if isinstance(event, Data)]
    assert told[0] == quiet


def test_a_message_too_big_or_too_deep_is_not_sent(pair: Pair) -> None:
    number = pair.open()
    for body in (
        {"x": "a" * MAX_PAYLOAD},
        {"x": [[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]},
        {"x": [[] for _ in range(2000)]},
    ):
        with pytest.raises(InvalidSpec):
            pair.host.send_message(number, body)


@pytest.mark.parametrize("torn", [0, 1, 11, 12, 13, 500, 70_000])
def test_a_reopened_stream_begins_anew_wherever_the_old_one_tore(torn: int) -> None:
    pair = Pair()
    number = pair.open()
    pair.host.send(number, 1, bytes(range(1, 251)) * 280)
    pair.guest.receive(drain(pair.host)[:torn])  # the rest is lost with the stream; the agent noticed nothing
    again = Connection(Side.HOST, nonce=NONCE[::-1])
    again.synchronise(reopened=True)
    again.hello({"fresh": False})
    events = pair.guest.receive(drain(again))
    assert [type(event) for event in events] == [Synced, Hello]
    old = b"what the agent had said before" * 100
    assert again.receive(old + drain(pair.guest)) == [Synced(NONCE[::-1])]


def test_a_host_hunts_only_so_far() -> None:
    host = Connection(Side.HOST, nonce=NONCE)
    for _ in range(16):
        host.receive(b"x" * 65_536)
    with pytest.raises(ProtocolViolation, match="no SYNC"):
        host.receive(b"x" * 65_536)


def test_the_preamble_alone_is_silence() -> None:
    guest = Connection(Side.GUEST)
    assert guest.receive(PREAMBLE) == []


def test_what_is_held_stays_within_channels_times_window(pair: Pair) -> None:
    """Nobody reads: a sender that always wants to send fills the windows, and nothing more, on either side."""
    numbers = [pair.open() for _ in range(9)]
    data, kept = bytes(WINDOW), []
    tracemalloc.start()
    try:
        for _ in range(20):
            for number in numbers:
                pair.guest.send(number, 1, data)
            kept += pair.host.receive(drain(pair.guest))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert sum(event.size for event in kept if isinstance(event, Data)) == 9 * WINDOW
    assert peak < 3 * 9 * WINDOW  # held by the owner, under way, and being joined
