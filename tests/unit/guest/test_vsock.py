"""What the agent listens on: the last connection counts, strangers are turned away, and what ends is told once."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from casemate.guest import vsock
from casemate.guest.reactor import Reactor

DEADLINE_S = 10.0
MUCH = bytes(range(256)) * 8192
LOCAL_PORT = 10_240


class Agent:
    """A listener on a unix socket, whose peers are the host's as long as *welcome* says so."""

    def __init__(self, listening: socket.socket) -> None:
        self.reactor, self.address = Reactor(), listening.getsockname()
        self.family = listening.family
        self.events: list[bytes | None] = []  # None: the connection was lost
        self.to_say: list[bytes] = []
        self.welcome = True
        self.listener = vsock.Listener(
            self.reactor, listening, self.events.append, lambda: self.events.append(None), self.is_welcome
        )
        self.reactor.after_turn = lambda: self.listener.send(lambda: self.to_say.pop(0) if self.to_say else b"")

    def is_welcome(self, _peer: Any) -> bool:
        return self.welcome

    def connect(self) -> socket.socket:
        made = socket.socket(self.family)
        made.settimeout(DEADLINE_S)
        made.connect(self.address)
        return made

    def until(self, there: Callable[[], object]) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not there():
            assert time.monotonic() < deadline, self.events
            self.reactor.turn(0.01)

    def take(self) -> list[bytes | None]:
        events, self.events[:] = self.events.copy(), []
        return events

    def turns(self, count: int = 5) -> None:
        for _ in range(count):
            self.reactor.turn(0)

    def close(self) -> None:
        self.listener.close()
        self.reactor.close()


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(tmp_path / "vsock"))
    listening.listen(vsock.BACKLOG)
    agent = Agent(listening)
    yield agent
    agent.close()


def test_bytes_go_both_ways(agent: Agent) -> None:
    with agent.connect() as host:
        host.sendall(b"hello")
        agent.until(lambda: agent.events)
        assert agent.take() == [b"hello"]
        agent.to_say.append(b"hello to you")
        agent.turns()
        assert host.recv(100) == b"hello to you"


def test_much_goes_as_the_host_takes_it(agent: Agent) -> None:
    with agent.connect() as host:
        agent.until(lambda: agent.listener._stream)
        agent.to_say.append(MUCH)
        host.setblocking(False)
        got = b""

        def take() -> bool:
            nonlocal got
            try:
                got += host.recv(50_000)
            except BlockingIOError:
                return False
            return len(got) == len(MUCH)

        agent.until(take)
        assert got == MUCH
        host.setblocking(True)
        host.settimeout(0.001)
        sent = 0
        while sent < len(MUCH):
            try:
                sent += host.send(MUCH[sent : sent + 65_536])
            except TimeoutError:
                agent.reactor.turn(0)
        agent.until(lambda: len(b"".join(filter(None, agent.events))) == len(MUCH))
        assert b"".join(filter(None, agent.events)) == MUCH


def test_one_after_another(agent: Agent) -> None:
    for number in range(3):
        with agent.connect() as host:
            host.sendall(b"%d" % number)
            agent.until(lambda: agent.events)
        agent.until(lambda: None in agent.events)
        assert agent.take() == [b"%d" % number, None]


def test_a_reset_is_an_end(agent: Agent) -> None:
    with agent.connect() as host:
        agent.until(lambda: agent.listener._stream)
        agent.to_say.append(b"unread")
        agent.turns()  # to close it unread resets the connection
        host.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    agent.until(lambda: agent.events)
    assert agent.take() == [None]


def test_the_last_one_counts(agent: Agent) -> None:
    with agent.connect() as first:
        first.sendall(b"first")
        agent.until(lambda: agent.events)
        with agent.connect() as second:
            second.sendall(b"second")
            agent.until(lambda: b"second" in agent.events)
            assert agent.take() == [b"first", None, b"second"]
            assert first.recv(1) == b""
            agent.to_say.append(b"to the second")
            agent.turns()
            assert second.recv(100) == b"to the second"


def test_a_stranger_disturbs_nobody(agent: Agent) -> None:
    with agent.connect() as host:
        host.sendall(b"host")
        agent.until(lambda: agent.events)
        agent.welcome = False
        for _ in range(3 * vsock.BACKLOG):
            with agent.connect() as stranger:
                agent.turns()
                assert stranger.recv(1) == b""
        host.sendall(b"still here")
        agent.until(lambda: b"still here" in agent.events)
        assert agent.take() == [b"host", b"still here"]


def test_half_of_what_was_being_said_is_not_said_to_the_next(agent: Agent) -> None:
    with agent.connect():
        agent.until(lambda: agent.listener._stream)
        agent.to_say.append(MUCH)
        agent.turns()
    agent.until(lambda: None in agent.events)
    with agent.connect() as host:
        agent.to_say.append(b"from the start")
        agent.until(lambda: agent.listener._stream)
        agent.turns()
        assert host.recv(100) == b"from the start"


def test_nothing_is_asked_for_while_nobody_is_there(agent: Agent) -> None:
    agent.to_say.append(b"kept")
    agent.turns()
    assert agent.to_say == [b"kept"]
    with agent.connect() as host:
        agent.until(lambda: not agent.to_say)
        assert host.recv(100) == b"kept"


def test_who_ends_in_the_middle_of_a_long_read_is_read_no_more(agent: Agent) -> None:
    """A turn's share was taken and the rest waits for the next one, when another connection comes."""
    with agent.connect() as first, agent.connect() as second:
        first.settimeout(0.01)
        with pytest.raises(TimeoutError):
            first.sendall(MUCH)
        agent.reactor.turn(0)
        agent.until(lambda: None in agent.events)
        before = len(agent.events)
        agent.turns(20)
        assert not any(agent.events[before:])
        second.sendall(b"second")
        agent.until(lambda: b"second" in agent.events)
        assert agent.take()[-1] == b"second"


def test_idle_it_wakes_for_nothing(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    with agent.connect():
        agent.until(lambda: agent.listener._stream)
    agent.until(lambda: None in agent.events)
    assert agent.reactor._wait_s(None) is None  # no timer is left


def test_only_the_host_is_welcome() -> None:
    assert vsock.is_host((2, 5000))
    assert not vsock.is_host((1, 5000))
    assert not vsock.is_host((3, 1024))


def test_a_peer_of_the_same_machine_is_turned_away() -> None:
    """Over the kernel's own vsock, where it has a loopback."""
    try:
        listening = vsock.listen(LOCAL_PORT)
    except OSError as error:
        pytest.skip(f"no vsock here: {error}")
    agent = Agent(listening)
    try:
        agent.listener._is_welcome = vsock.is_host
        with socket.socket(socket.AF_VSOCK) as stranger:
            stranger.settimeout(0.5)
            try:
                stranger.connect((1, LOCAL_PORT))
            except OSError as error:
                pytest.skip(f"this kernel's vsock has no loopback: {error}")
            agent.turns()
            assert stranger.recv(1) == b""
        assert agent.events == []
    finally:
        agent.close()
