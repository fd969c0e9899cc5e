"""One channel's books: what waits to be sent, whose credit is how much, who has finished."""

from __future__ import annotations

from collections import deque

from casemate.errors import ProtocolViolation, StateConflict
from casemate.wire import frames

MIN_COST = 256  # of a DATA frame, however short: what the receiver keeps of one is never below that


def cost(length: int) -> int:
    """How much of a window a DATA frame of *length* bytes takes."""
    return length if length > MIN_COST else MIN_COST


class Channel:
    __slots__ = (
        "accepted", "credit", "fin_in", "fin_out", "finishing", "listed", "owed", "queue", "queued", "room",
        "starved", "surcharge", "unconsumed", "window",
    )  # fmt: skip

    def __init__(self, window: int) -> None:
        self.window = window
        self.accepted = False
        self.listed = False  # has a place in the connection's rounds
        # Outgoing: queued (by cost) waits here, credit is what the peer has room for.
        self.queue: deque[tuple[int, memoryview]] | None = None
        self.queued = 0
        self.credit = window
        self.starved = self.finishing = self.fin_out = False
        # Incoming: room is what the peer may still send, unconsumed what our owner holds (surcharge: the
        # rest of what that cost), owed what it gave back and we did not yet.
        self.room = window
        self.unconsumed = self.surcharge = self.owed = 0
        self.fin_in = False

    # Outgoing

    def writable(self) -> int:
        free = self.credit - self.queued
        return free if free >= MIN_COST and not self.finishing else 0

    def put(self, sub: int, data: memoryview) -> None:
        if self.finishing:
            raise StateConflict("the channel was finished", hint="finish comes after the last send")
        if self.queue is None:
            self.queue = deque()
        self.queue.append((sub, data))
        self.queued += cost(len(data))

    def take(self, most: int) -> tuple[int, memoryview] | None:
        """The next DATA frame's sub and payload, at most *most* bytes unless it is a message; None without credit."""
        if not self.queue:
            return None
        sub, data = self.queue[0]
        piece = data if sub == frames.MESSAGE else data[: min(most, max(self.credit, 0))]
        price = cost(len(piece))
        if price > self.credit:
            return None
        self.credit -= price
        self.queued -= cost(len(data))
        if len(piece) == len(data):
            self.queue.popleft()
        else:
            rest = data[len(piece) :]
            self.queue[0] = (sub, rest)
            self.queued += cost(len(rest))
        return sub, piece

    def has_work(self) -> bool:
        return bool(self.queue) or (self.finishing and not self.fin_out)

    def credited(self, count: int) -> bool:
        """Note *count* more credit; whether a sender that was refused may go on."""
        if count < MIN_COST:  # our own ends give back a quarter of the window at a time; less is a flood of frames
            raise ProtocolViolation(f"a credit of {count} bytes")
        self.credit += count
        if self.credit > self.window:
            raise ProtocolViolation("credit beyond the window")
        if not self.starved or not self.writable():
            return False
        self.starved = False
        return True

    # Incoming

    def arrived(self, length: int) -> None:
        price = cost(length)
        self.room -= price
        if self.fin_in or self.room < 0:
            raise ProtocolViolation("data after the end" if self.fin_in else "data beyond the window")
        self.unconsumed += length
        self.surcharge += price - length

    def consumed(self, count: int) -> bool:
        """Note that the owner is done with *count* bytes; whether it is time to give credit."""
        if not 0 <= count <= self.unconsumed:
            raise ValueError(f"{count} bytes consumed, {self.unconsumed} held")
        if count:
            share = self.surcharge * count // self.unconsumed
            self.unconsumed -= count
            self.surcharge -= share
            self.owed += count + share
        return self.owed * 4 >= self.window and not self.fin_in

    def give_back(self) -> int:
        """What is owed; the peer may send that much more."""
        owed, self.owed = self.owed, 0
        self.room += owed
        return owed
