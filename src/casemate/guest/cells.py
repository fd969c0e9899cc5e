"""Cells: pieces of code as resources that outlive the channels that look at them.

A cell is gone through once: waiting, begun, ended. While somebody follows it nothing of its log is lost: a full log
stops the reading, full pipes and a full socket the context. While nobody does, the oldest goes and the context never
waits. An ended cell is kept with its log until newer ones push it out.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, Protocol

from casemate.errors import NotFound, StateConflict
from casemate.guest.cell_ends import COUNT_AT_MOST, End, brief
from casemate.guest.cell_log import RESULT, CellLog

GRACE_S = 2.0
ID_BYTES = 8  # as the host draws them
ENDED_KEPT = 64
ENDED_BYTES = 8 << 20
ENDED_FILE_BYTES = 64 << 20
RESULTS_AT_MOST = 1000
RESULT_BYTES_AT_MOST = 64 << 20


class Follower(Protocol):
    """Who looks on. `cursor` is the next offset it needs."""

    cursor: int

    def on_progress(self) -> None:
        """The log has grown, or the cell has moved up, begun or ended."""


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be run, and within which bounds. *asks*: no cell, but a question to the engine."""

    timeout_s: float | None = None
    grace_s: float = GRACE_S
    limits: Mapping[str, Any] = field(default_factory=dict)
    asks: Mapping[str, Any] | None = None


class Cell:
    """One of them. `on_room` is the context's to set while it runs the cell."""

    def __init__(self, cell_id: str, context_id: str, order: Order) -> None:
        self.cell_id, self.context_id, self.order = cell_id, context_id, order
        self.code = bytearray()
        self.stdin: bytearray | None = None
        self.log = CellLog()
        self.followers: list[Follower] = []
        self.place: int | None = None  # how many wait before it; None: it does not wait
        self.execution_count = 0
        self.begun_at = 0.0
        self.timed_out = self.struck = self.is_forgotten = False
        self.results = 0
        self.left_out = {"results": 0, "result_bytes": 0}
        self.ended: dict[str, Any] | None = None  # the body of its end message
        self.on_room: Callable[[], None] | None = None

    @property
    def has_begun(self) -> bool:
        return self.begun_at > 0

    def begin(self, execution_count: int) -> None:
        self.place, self.execution_count, self.begun_at = None, execution_count, monotonic()
        self._tell()

    def let_go_of_input(self) -> None:
        """The context has it."""
        self.code, self.stdin = bytearray(), None

    def move(self, place: int) -> None:
        if place != self.place:
            self.place = place
            self._tell()

    def take_output(self, sub: int, data: bytes) -> None:
        self.log.append(sub, data)
        self._tell()

    def take_result(self, body: bytes) -> None:
        if self._admit(len(body)):
            self.log.append(RESULT, body)
            self._tell()

    def take_result_file(self, file: int, size: int) -> bool:
        """False: it is left out, and *file* the caller's still."""
        if not self._admit(size):
            return False
        self.log.append_file(file, size)
        self._tell()
        return True

    def finish(self, end: End, more: Mapping[str, Any]) -> None:
        """*more*: what else its end says."""
        self.place, self.on_room = None, None
        self.ended = {
            "event": "end",
            "end": end,
            "execution_count": self.execution_count,
            "duration_ms": self.duration_ms(),
            "files_changed": [],
            "files_cut": 0,
            "left_out": self.left_out,
            **more,
        }
        self._tell()

    def duration_ms(self) -> float:
        if self.ended is not None:
            duration_ms: float = self.ended["duration_ms"]
            return duration_ms
        return round((monotonic() - self.begun_at) * 1000, 1) if self.has_begun else 0.0

    # ---------------------------------------------------------------- followers

    def follow(self, follower: Follower) -> None:
        """From now on nothing at or after the follower's cursor is dropped."""
        self.followers.append(follower)

    def unfollow(self, follower: Follower) -> None:
        if follower in self.followers:
            self.followers.remove(follower)
            self.taken()
            if self.is_forgotten and not self.followers:
                self.log.close()

    def forget(self) -> None:
        """Nobody new will ask for it; its log goes with the last follower."""
        self.is_forgotten = True
        if not self.followers:
            self.log.close()

    def taken(self) -> None:
        """A follower has moved on or gone: there may be room again."""
        if self.on_room is not None and self.has_room():
            self.on_room()

    def has_room(self) -> bool:
        """Whether more may be taken. One that was struck gets as much again, to come to its end with."""
        log = self.log
        if not log.is_full():
            return True
        needed_from = min((follower.cursor for follower in self.followers), default=log.end)
        log.trim(needed_from)
        return needed_from >= log.end or (self.struck and not log.is_full(2))

    def listed(self) -> dict[str, Any]:
        state = "ended" if self.ended is not None else "running" if self.has_begun else "queued"
        return {
            "cell_id": self.cell_id,
            "context": self.context_id,
            "state": state,
            "place": self.place,
            "end": brief(self.ended["end"]) if self.ended is not None else None,
            "duration_ms": self.duration_ms(),
            "offset": self.log.end,
        }

    def _admit(self, size: int) -> bool:
        """Whether one more result is within the bounds; else it is counted as left out."""
        asked = self.order.limits.get("results", RESULTS_AT_MOST)
        if self.results < asked and size <= RESULT_BYTES_AT_MOST:
            self.results += 1
            return True
        self.left_out["results"] += 1
        self.left_out["result_bytes"] = min(self.left_out["result_bytes"] + size, COUNT_AT_MOST)
        return False

    def _tell(self) -> None:
        for follower in tuple(self.followers):
            follower.on_progress()


class Cells:
    """All cells of this sandbox by id; forgets the oldest ended ones."""

    def __init__(self) -> None:
        self._cells: dict[str, Cell] = {}
        self._ended: deque[Cell] = deque()
        self._held = self._held_in_files = 0

    def add(self, cell: Cell) -> None:
        """Raises StateConflict for an id in use."""
        if cell.cell_id in self._cells:
            raise StateConflict(f"there is a cell {cell.cell_id} already")
        self._cells[cell.cell_id] = cell

    def find(self, cell_id: str) -> Cell:
        """Raises NotFound."""
        found = self._cells.get(cell_id)
        if found is None:
            raise NotFound(
                f"there is no cell {cell_id!r}", hint="an ended one is kept until newer ones have pushed it out"
            )
        return found

    def all(self) -> list[Cell]:
        return list(self._cells.values())

    def rename_all(self) -> None:
        """In a copy of the sandbox: each is there under an id nobody knows yet, also the ended ones."""
        cells, self._cells = self._cells.values(), {}
        for cell in cells:
            cell.cell_id = os.urandom(ID_BYTES).hex()
            self._cells[cell.cell_id] = cell

    def input_held(self) -> int:
        """Bytes of code and stdin that no context has yet."""
        return sum(len(cell.code) + len(cell.stdin or b"") for cell in self._cells.values() if cell.ended is None)

    def discard(self, cell: Cell) -> None:
        """One that never waited, or that nobody will ask for: its followers still see its end."""
        if self._cells.get(cell.cell_id) is cell:
            del self._cells[cell.cell_id]
        cell.forget()

    def keep(self, ended: Cell) -> None:
        """*ended* has just ended; the oldest may go for it."""
        self._ended.append(ended)
        self._held += ended.log.held
        self._held_in_files += ended.log.held_in_files
        for _ in range(len(self._ended)):
            if len(self._ended) <= ENDED_KEPT and self._held <= ENDED_BYTES and self._held_in_files <= ENDED_FILE_BYTES:
                return
            oldest = self._ended.popleft()
            if oldest.followers or oldest is ended:
                self._ended.append(oldest)
            else:
                self._forget(oldest)

    def forget_ended(self) -> None:
        while self._ended:
            self._forget(self._ended.popleft())

    def _forget(self, cell: Cell) -> None:
        self._held -= cell.log.held
        self._held_in_files -= cell.log.held_in_files
        self.discard(cell)
