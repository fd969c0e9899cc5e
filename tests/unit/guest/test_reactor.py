"""One loop: a callback that fails is reported and the loop goes on; timers run in order; edges wake once."""

from __future__ import annotations

import os
import socket
import time

import pytest

from casemate.guest.reactor import Reactor


@pytest.fixture
def reactor():
    found = Reactor()
    yield found
    found.close()


def test_a_callback_that_fails_ends_nothing(reactor: Reactor, capfd: pytest.CaptureFixture[str]) -> None:
    served = []
    reactor.call_later(0, lambda: 1 // 0)  # type: ignore[arg-type,return-value]
    reactor.call_later(0.001, lambda: served.append(1))
    deadline = time.monotonic() + 10
    while not served and time.monotonic() < deadline:
        reactor.turn(0.01)
    assert served == [1]
    assert "ZeroDivisionError" in capfd.readouterr().err


def test_timers_run_in_order_and_not_when_cancelled(reactor: Reactor) -> None:
    served: list[str] = []
    reactor.call_later(0.02, lambda: served.append("late"))
    reactor.call_later(0.01, lambda: served.append("early"))
    reactor.call_later(0.015, lambda: served.append("never")).cancel()
    deadline = time.monotonic() + 10
    while len(served) < 2 and time.monotonic() < deadline:
        reactor.turn(0.05)
    assert served == ["early", "late"]


def test_cancelled_timers_do_not_pile_up(reactor: Reactor) -> None:
    served: list[int] = []
    kept = [reactor.call_later(0.01, lambda: served.append(1)) for _ in range(3)]
    for _ in range(20_000):
        reactor.call_later(86_400, lambda: None).cancel()
    assert len(reactor._timers) < 1000
    assert all(timer.callback is not None for timer in kept)
    deadline = time.monotonic() + 10
    while len(served) < 3 and time.monotonic() < deadline:
        reactor.turn(0.05)
    assert served == [1, 1, 1]


def test_a_descriptor_closed_before_it_is_unwatched_does_no_harm(reactor: Reactor) -> None:
    ours, theirs = socket.socketpair()
    reactor.watch(ours.fileno(), lambda: None)
    number = ours.fileno()
    ours.close()
    theirs.close()
    reactor.unwatch(number)
    reactor.turn(0)


def test_an_ended_stream_watched_for_edges_wakes_once(reactor: Reactor) -> None:
    """What keeps an agent that nobody listens to from spinning."""
    read, write = os.pipe()
    wakes = []
    reactor.watch_edges(read, lambda: wakes.append(os.read(read, 100)))
    os.close(write)
    for _ in range(20):
        reactor.turn(0.001)
    os.close(read)
    assert wakes == [b""]
