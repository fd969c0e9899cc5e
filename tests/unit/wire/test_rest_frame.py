"""A conversation that is put to rest has nothing under way, and goes on where it stopped over another stream."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from peers import Pair, chunks, drain

from casemate.errors import ProtocolViolation, StateConflict
from casemate.wire import WINDOW, Accepted, Data, Pong, Rested
from casemate.wire.frames import PREAMBLE, REST, pack


@pytest.fixture
def pair() -> Pair:
    return Pair()


def test_at_rest_each_has_what_the_other_said_and_says_no_more(pair: Pair) -> None:
    number, other = pair.open(), pair.open("file")
    pair.host.send(number, 1, b"in")
    asked = pair.host.open("exec", {})
    pair.host.rest()
    pair.host.send(number, 1, b" later")
    pair.guest.receive(drain(pair.host))
    pair.guest.send(number, 1, b"out")
    pair.guest.reset(other, "closed")
    pair.host.ping(b"8 bytes!")
    pair.run()
    assert pair.at_host == [Rested()]
    assert Data(number, 1, b"in") not in pair.at_guest
    assert pair.guest.resting
    assert not drain(pair.host) + drain(pair.guest)
    pair.host.go_on()
    pair.run()
    assert not pair.guest.resting
    assert [e for e in pair.at_guest if isinstance(e, Data)] == [Data(number, 1, b"in"), Data(number, 1, b" later")]
    assert Data(number, 1, b"out") in pair.at_host
    assert Pong(b"8 bytes!") in pair.at_host
    pair.guest.accept(asked)
    pair.run()
    assert Accepted(asked, {}) in pair.at_host


@given(st.lists(st.integers(1, 40_000), max_size=8), st.integers(0, WINDOW), st.integers(0, WINDOW))
def test_nothing_is_lost_or_repeated(sizes: list[int], up: int, down: int) -> None:
    """Whatever each has said before, of what it has to say, and however it is cut."""
    pair = Pair()
    number = pair.open()
    pair.guest.send(number, 1, b"u" * up)
    pair.host.send(number, 1, b"d" * down)
    pair.at_guest += pair.guest.receive(pair.host.outgoing(down // 2))
    pair.at_host += pair.host.receive(pair.guest.outgoing(up // 2))
    pair.host.rest()
    for piece in chunks(drain(pair.host), sizes):
        pair.at_guest += pair.guest.receive(piece)
    for piece in chunks(drain(pair.guest), sizes):
        pair.at_host += pair.host.receive(piece)
    assert pair.at_host[-1] == Rested()
    pair.host.go_on()
    pair.host.ping(b"8 bytes!")
    pair.run()
    assert Pong(b"8 bytes!") in pair.at_host
    assert b"".join(e.data for e in pair.at_host if isinstance(e, Data)) == b"u" * up
    assert b"".join(e.data for e in pair.at_guest if isinstance(e, Data)) == b"d" * down


def test_what_was_given_up_is_answered_late_and_counts_for_nothing(pair: Pair) -> None:
    pair.host.rest()
    asked = drain(pair.host)
    pair.host.go_on()
    pair.host.ping(b"8 bytes!")
    pair.host.rest()
    pair.guest.receive(asked)
    late = drain(pair.guest)
    assert not pair.host.receive(late)
    pair.run()
    assert pair.at_host[-2:] == [Pong(b"8 bytes!"), Rested()]


def test_the_guest_goes_on_when_it_hears_the_host_in_the_same_breath(pair: Pair) -> None:
    pair.host.rest()
    down = drain(pair.host)
    pair.host.go_on()
    pair.host.ping(b"8 bytes!")
    pair.guest.receive(down + drain(pair.host))
    assert not pair.guest.resting
    assert pair.host.receive(drain(pair.guest)) == [Pong(bytes(8)), Pong(b"8 bytes!")]


def test_the_guest_hears_that_it_may_go_on_from_a_host_that_has_nothing_to_say(pair: Pair) -> None:
    number = pair.open()
    pair.host.rest()
    pair.run()
    pair.guest.send(number, 1, b"out")
    pair.run()
    assert pair.at_host == [Rested()]
    pair.host.go_on()
    pair.host.go_on()
    pair.run()
    assert pair.at_host[1:] == [Pong(bytes(8)), Data(number, 1, b"out")]


def test_another_host_begins_anew_with_one_at_rest(pair: Pair) -> None:
    pair.open()
    pair.host.rest()
    pair.run()
    host = Pair().host
    host.synchronise(reopened=True)
    pair.guest.receive(PREAMBLE)
    pair.guest.receive(drain(host))
    assert not pair.guest.resting
    assert pair.guest.writable(1) == 0  # it knows no channel


def test_a_rest_nobody_asked_for_ends_the_connection(pair: Pair) -> None:
    with pytest.raises(ProtocolViolation, match="asked for"):
        pair.host.receive(pack(REST))


def test_to_speak_at_rest_ends_the_connection(pair: Pair) -> None:
    pair.host.rest()
    pair.run()
    with pytest.raises(ProtocolViolation, match="rests"):
        pair.host.receive(pack(REST))


def test_a_guest_does_not_ask_for_it(pair: Pair) -> None:
    with pytest.raises(StateConflict):
        pair.guest.rest()
