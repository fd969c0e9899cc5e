"""Channels of kind cell: run, join, interrupt, list."""

from __future__ import annotations

import json
from typing import Any

from casemate import wire
from casemate.errors import InvalidSpec, RequestError
from casemate.guest.cell_log import RESULT
from casemate.guest.cells import GRACE_S, Cell, Order
from casemate.guest.contexts import DEFAULT, Contexts
from casemate.guest.conversation import Conversation, optional_text, seconds, text, whole

_ID_CHARACTERS = 100
_LIST_BYTES = 50_000
_LISTED_AT_MOST = 200
_CODE = 1


class CellChannel(Conversation):
    """One look at one cell, or one act on it. Runs a cell once its code is complete."""

    cell: Cell | None = None
    cursor = 0
    _is_owner = _detach = _runs = _said_all = False
    _place: int | None = None
    _told_begun = False
    _announced = -1  # the offset of the result that was announced last

    def begin(self, params: dict[str, Any]) -> None:
        op = text(params, "op")
        if op == "run":
            self._run(params)
        elif op == "join":
            self._join(params)
        elif op == "interrupt":
            contexts = self.contexts
            contexts.interrupt(contexts.table.find(text(params, "cell_id")))
            self.accept()
            self.finish()
        elif op == "list":
            self.accept({"cells": newest(self.contexts.table.all())})
            self.finish()
        else:
            raise InvalidSpec(f"cell has no op {op!r}")

    @property
    def contexts(self) -> Contexts:
        return self.server.prepared_contexts()

    # ------------------------------------------------------------------ opening

    def _run(self, params: dict[str, Any]) -> None:
        contexts, user = self.contexts, optional_text(params, "user")
        cell_id = identity(params, "cell_id")
        context = contexts.for_cell(
            text(params, "context", DEFAULT),
            optional_text(params, "language"),
            lambda: self.server.surroundings.job((), {}, None, user),
        )
        cell = Cell(cell_id, context.context_id, _order(params))
        contexts.table.add(cell)
        self.cell, self._is_owner, self._detach = cell, True, bool(params.get("detach"))
        self._place = cell.place = context.queued
        self.accept({"cell_id": cell_id, "context": context.context_id, "place": self._place})
        if params.get("stdin"):
            cell.stdin = bytearray()

    def _join(self, params: dict[str, Any]) -> None:
        cell = self.contexts.table.find(text(params, "cell_id"))
        asked = whole(params, "offset", 0)
        if asked > cell.log.end:
            error = RequestError(f"offset {asked} is past the end, {cell.log.end}", hint="ask from 0")
            self.deny(error, "bad-offset")
            return
        self.cell, self.cursor, self._runs = cell, cell.log.first_from(asked), True
        self.accept({"cell_id": cell.cell_id, "context": cell.context_id, "offset": self.cursor})
        cell.follow(self)
        self.on_progress()

    def on_data(self, event: wire.Data) -> None:
        self.connection.consumed(self.number, event.size)
        cell = self.cell
        coming = None if cell is None or self._runs else cell.code if event.sub == _CODE else cell.stdin
        if coming is None:
            return
        try:
            self.contexts.feed(coming, event.data)
        except RequestError:
            self._abandon()
            raise

    def on_finished(self) -> None:
        if not self._runs and self.cell is not None:
            self._start()

    def _start(self) -> None:
        """All of it is here."""
        cell = self.cell
        assert cell is not None
        self._runs = True
        cell.follow(self)
        try:
            self.contexts.run(cell)
        except RequestError:
            self._abandon()
            raise

    # ---------------------------------------------------------------- following

    def on_progress(self) -> None:
        """Send what the window takes; once all is sent and the cell has ended, its end."""
        cell = self.cell
        if cell is None or self._said_all or not self._runs:
            return
        if cell.place is not None:
            if cell.place != self._place:
                self._place = cell.place
                self.connection.send_message(self.number, {"event": "queued", "place": cell.place})
            return
        if cell.has_begun and not self._told_begun:
            self._told_begun = True
            begun = {"event": "begun", "execution_count": cell.execution_count}
            self.connection.send_message(self.number, begun)
        if self._send_log(cell) and cell.ended is not None:
            self._said_all = True
            cell.unfollow(self)
            self.connection.send_message(self.number, cell.ended)
            self.finish()

    def _send_log(self, cell: Cell) -> bool:
        """False: some is left, and Writable is going to come."""
        connection, number = self.connection, self.number
        for record, skip in cell.log.records_from(self.cursor):
            if record.sub == RESULT and self._announced != record.start and connection.writable(number):
                self._announced = record.start
                connection.send_message(number, {"event": "result", "size": record.size})
            while skip < record.size:
                piece = record.read(skip)
                count = connection.send(number, record.sub, piece)
                skip += count
                self.cursor += count
                if count < len(piece):
                    return False
        return True

    def on_writable(self) -> None:
        self.on_progress()
        if self.cell is not None:
            self.cell.taken()

    def on_closed(self, lost: bool) -> None:
        cell = self.cell
        if cell is None or self._said_all:
            return
        self._said_all = True
        if not self._runs:
            self._abandon()
            return
        cell.unfollow(self)
        if self._is_owner and not self._detach and not lost:  # lost: its host is gone, not its caller's wish
            self.contexts.interrupt(cell)

    def _abandon(self) -> None:
        """It never came to run: nobody hears of it again."""
        self._said_all = True
        if self.cell is not None:
            self.cell.unfollow(self)
            self.contexts.table.discard(self.cell)


def identity(params: dict[str, Any], name: str) -> str:
    """An id that the host made. Raises InvalidSpec."""
    found = text(params, name)
    if not 0 < len(found) <= _ID_CHARACTERS or not found.isascii():
        raise InvalidSpec(f"{name} is not 1 to {_ID_CHARACTERS} ASCII characters")
    return found


def newest(cells: list[Cell]) -> list[dict[str, Any]]:
    """The last ones, as many as surely fit into one message."""
    room, taken = _LIST_BYTES, []
    for cell in reversed(cells[-_LISTED_AT_MOST:]):
        entry = cell.listed()
        room -= len(json.dumps(entry)) + 1
        if room < 0:
            break
        taken.append(entry)
    return taken[::-1]


def _order(params: dict[str, Any]) -> Order:
    limits, act = params.get("limits") or {}, optional_text(params, "act")
    if not isinstance(limits, dict) or not all(type(limit) is int and limit >= 0 for limit in limits.values()):
        raise InvalidSpec("limits is not an object of whole numbers from 0 on")
    if act not in (None, "complete", "inspect"):
        raise InvalidSpec(f"a cell has no act {act[:40]!r}")
    return Order(
        timeout_s=seconds(params, "timeout_s"),
        grace_s=seconds(params, "grace_s") or GRACE_S,
        limits=limits,
        asks=_question(act, params) if act else None,
    )


def _question(act: str, params: dict[str, Any]) -> dict[str, Any]:
    place = {"op": act, "cursor": whole(params, "cursor", 0)}
    return place | {"detail": whole(params, "detail", 0)} if act == "inspect" else place
