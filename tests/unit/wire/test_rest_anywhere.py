"""A conversation that is put to rest, given up on, carried over the next stream: in any order, at any moment."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from peers import NONCE

from casemate.wire import Closed, Connection, Data, Event, Finished, Opened, Rested, Side

MOST = 80_000


class Conversation(RuleBasedStateMachine):
    """Two ends, and what is under way between them. Each sends bytes that say where in its channel they stand."""

    def __init__(self) -> None:
        super().__init__()
        self.host, self.guest = Connection(Side.HOST, nonce=NONCE), Connection(Side.GUEST)
        self.host.synchronise()
        self.down, self.up = bytearray(), bytearray()
        self.said: dict[tuple[int, bool], int] = {}  # by channel, and whether it is the host
        self.heard: dict[tuple[int, bool], int] = {}
        self.held: list[tuple[Connection, int, int]] = []  # not consumed yet
        self.channels: list[int] = []
        self.rested = False

    # ------------------------------------------------------------------ what each end does

    @precondition(lambda self: len(self.channels) < 5)
    @rule()
    def open(self) -> None:
        self.channels.append(self.host.open("exec", {}))

    @precondition(lambda self: self.channels)
    @rule(data=st.data(), by_host=st.booleans(), size=st.integers(1, MOST))
    def send(self, data: st.DataObject, by_host: bool, size: int) -> None:
        number = data.draw(st.sampled_from(self.channels))
        end = self.host if by_host else self.guest
        at = self.said.get((number, by_host), 0)
        if end.writable(number) and (by_host or (number, True) in self.heard):
            self.said[number, by_host] = at + end.send(number, 1, bytes((at + n) % 251 for n in range(size)))

    @precondition(lambda self: self.held)
    @rule()
    def consume(self) -> None:
        held, self.held = self.held, []
        for end, number, size in held:
            end.consumed(number, size)

    @rule(limit=st.integers(1, MOST))
    def speak(self, limit: int) -> None:
        self.down += self.host.outgoing(limit)

    @rule(limit=st.integers(1, MOST))
    def answer(self, limit: int) -> None:
        self.up += self.guest.outgoing(limit)

    @rule(size=st.integers(1, MOST))
    def hear_down(self, size: int) -> None:
        piece, self.down[:size] = bytes(self.down[:size]), b""
        self._note(self.guest, False, self.guest.receive(piece))

    @rule(size=st.integers(1, MOST))
    def hear_up(self, size: int) -> None:
        piece, self.up[:size] = bytes(self.up[:size]), b""
        self._note(self.host, True, self.host.receive(piece))

    @precondition(lambda self: not self.host.resting)
    @rule()
    def rest(self) -> None:
        self.host.rest()

    @precondition(lambda self: self.host.resting)
    @rule()
    def go_on(self) -> None:
        """Given up, or over the next stream."""
        if self.rested:
            assert not self.down + self.up + self.host.outgoing() + self.guest.outgoing()
            assert self.guest.resting
        self.host.go_on()
        self.rested = False

    # ------------------------------------------------------------------ what holds

    def _note(self, end: Connection, at_host: bool, events: list[Event]) -> None:
        for event in events:
            match event:
                case Opened():
                    self.guest.accept(event.channel)
                    self.heard[event.channel, True] = 0
                case Data():
                    key = event.channel, not at_host
                    at = self.heard.get(key, 0)
                    assert event.data == bytes((at + n) % 251 for n in range(len(event.data)))
                    self.heard[key] = at + len(event.data)
                    self.held.append((end, event.channel, event.size))
                case Rested():
                    self.rested = True
                case Finished() | Closed():
                    raise AssertionError(event)

    @invariant()
    def who_rests_says_nothing(self) -> None:
        if self.rested:
            assert not self.down + self.up

    def teardown(self) -> None:
        self.host.go_on()
        quiet = 0
        while quiet < 2:
            self.consume()
            self.speak(MOST)
            self.answer(MOST)
            quiet = 0 if self.down or self.up else quiet + 1
            self.hear_down(len(self.down) or 1)
            self.hear_up(len(self.up) or 1)
        assert not self.guest.resting
        assert {key: count for key, count in self.heard.items() if count} == self.said


TestConversation = Conversation.TestCase
TestConversation.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
