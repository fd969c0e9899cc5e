"""Contexts and cells of the fake guest: code is a little language, a step a line.

out TEXT, err TEXT, flood BYTES     output                    result JSON, big BYTES      a result's body
hang, hang hard, sleep S            hard: ignores interrupts  count                       a result: its cells so far
die, memory, lie, let-go, half      ends                      stdin                       writes its input
1/0                                 an error                  anything else               a result of that text
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from casemate import wire

LOG_BYTES = 2**20
QUEUE_LIMIT = 64
GRACE_S = 2.0
Json = dict[str, Any]


@dataclass(frozen=True)
class Record:
    number: int
    offset: int
    sub: int
    what: bytes | Json


@dataclass(eq=False)
class FakeCell:
    cell_id: str
    params: Json
    context: FakeContext
    code: bytes = b""
    stdin: bytes = b""
    records: deque[Record] = field(default_factory=deque)
    recorded: int = 0
    news: asyncio.Event = field(default_factory=asyncio.Event)
    gone: bool = False
    offset: int = 0
    start: int = 0
    state: str = "queued"
    end: Json | None = None
    interrupted: asyncio.Event = field(default_factory=asyncio.Event)
    killed: asyncio.Event = field(default_factory=asyncio.Event)
    followers: dict[int, int] = field(default_factory=dict)  # channel → how far
    interrupted_at: float | None = None

    def say(self, what: bytes | Json, sub: int = 0) -> None:
        self.records.append(Record(self.recorded, self.offset, sub, what))
        self.recorded += 1
        self.news.set()

    async def write(self, sub: int, data: bytes) -> None:
        """Held up by a follower that does not read; with none the oldest goes."""
        while self.followers and self.offset - min(self.followers.values()) >= LOG_BYTES:
            await asyncio.sleep(0.001)
        if sub == 3:
            self.say({"event": "result", "size": len(data)})
        self.say(data, sub)
        self.offset += len(data)
        held_from = min(self.followers.values(), default=self.offset)
        while self.records and self.offset - self.start > LOG_BYTES:
            oldest = self.records[0]
            after = oldest.offset + (len(oldest.what) if isinstance(oldest.what, bytes) else 0)
            if after > held_from or (after == held_from and self.followers):
                break
            self.records.popleft()
            self.start = after


@dataclass(eq=False)
class FakeContext:
    context_id: str
    language: str = "python"
    cwd: str = "/home/user"
    env: Json = field(default_factory=dict)
    queue: deque[FakeCell] = field(default_factory=deque)
    running: FakeCell | None = None
    count: int = 0
    more: asyncio.Event = field(default_factory=asyncio.Event)

    def info(self) -> Json:
        state = "busy" if self.running else "idle"
        about = {"context_id": self.context_id, "language": self.language, "version": "3.13", "cwd": self.cwd}
        return about | {"state": state, "queued": len(self.queue), "execution_count": self.count, "pid": 7}


class FakeCode:
    def __init__(
        self,
        connection: wire.Connection,
        pump: Callable[[int, int, bytes], Awaitable[None]],
        spawn: Callable[[Any], None],
        wake: Callable[[], None],
    ) -> None:
        self._connection, self.pump, self._spawn, self._wake = connection, pump, spawn, wake
        self.contexts: dict[str, FakeContext] = {}
        self.cells: dict[str, FakeCell] = {}
        self._collecting: dict[int, FakeCell] = {}
        self._runs: dict[int, FakeCell] = {}

    # -------------------------------------------------------------------------------- channels

    def on_opened(self, kind: str, number: int, params: Json) -> None:
        getattr(self, f"_{kind}_{params['op']}")(number, params)

    def on_data(self, number: int, sub: int, data: bytes) -> bool:
        cell = self._collecting.get(number)
        if cell is None:
            return number in self._runs
        if sub == 1:
            cell.code += data
        else:
            cell.stdin += data
        return True

    def on_finished(self, number: int) -> bool:
        cell = self._collecting.pop(number, None)
        if cell is None:
            return number in self._runs
        cell.context.queue.append(cell)
        cell.context.more.set()
        return True

    def on_reset(self, number: int) -> None:
        cell = self._runs.pop(number, None)
        self._collecting.pop(number, None)
        if cell is None:
            return
        cell.followers.pop(number, None)
        if cell.params.get("owner") == number and not cell.params["detach"] and cell.end is None:
            self._interrupt(cell)
            grace_s = GRACE_S if cell.params["grace_s"] is None else cell.params["grace_s"]
            asyncio.get_running_loop().call_later(grace_s, cell.killed.set)

    def _interrupt(self, cell: FakeCell) -> None:
        cell.interrupted_at = cell.interrupted_at or asyncio.get_running_loop().time()
        cell.interrupted.set()
        if cell in cell.context.queue:
            cell.context.queue.remove(cell)
            self._end(cell, {"kind": "interrupted", "state_kept": True})

    def _cell_run(self, number: int, params: Json) -> None:
        if params["context"] == "default" and "default" not in self.contexts:
            self._start(FakeContext("default"))
        context = self.contexts.get(params["context"])
        if context is None:
            self._connection.deny(number, "not-found", message="there is no such context")
            return
        if len(context.queue) >= QUEUE_LIMIT:
            self._connection.deny(number, "state-conflict", message=f"{QUEUE_LIMIT} cells wait: too many")
            return
        cell = FakeCell(params["cell_id"], params | {"owner": number}, context)
        self.cells[cell.cell_id] = self._runs[number] = self._collecting[number] = cell
        cell.followers[number] = 0
        place = len(context.queue)
        self._connection.accept(number, {"cell_id": cell.cell_id, "context": context.context_id, "place": place})
        self._spawn(self._carry(cell, number, 0))

    def _cell_join(self, number: int, params: Json) -> None:
        cell = self._found(number, params)
        if cell is None:
            return
        if params["offset"] > cell.offset:
            self._connection.deny(number, "bad-offset", message="past the end")
            return
        offset = max(params["offset"], cell.start)
        cell.followers[number] = offset
        self._runs[number] = cell
        body = {"cell_id": cell.cell_id, "context": cell.context.context_id, "offset": offset}
        self._connection.accept(number, body)
        self._spawn(self._carry(cell, number, offset))

    def _cell_interrupt(self, number: int, params: Json) -> None:
        cell = self._found(number, params)
        if cell is not None and cell.end is not None:
            self._connection.deny(number, "state-conflict", message="it has ended")
        elif cell is not None:
            self._interrupt(cell)
            self._accept(number, {})

    def _cell_list(self, number: int, params: Json) -> None:
        found = []
        for cell in self.cells.values():
            said = {"cell_id": cell.cell_id, "context": cell.context.context_id, "state": cell.state}
            said |= {"duration_ms": 1, "offset": cell.offset}
            said |= {"end": cell.end} if cell.end else {}
            said |= {"place": cell.context.queue.index(cell)} if cell in cell.context.queue else {}
            found.append(said)
        self._accept(number, {"cells": found})

    def _context_create(self, number: int, params: Json) -> None:
        if params["language"] not in ("python", "bash"):
            self._connection.deny(number, "not-supported", message=f"no {params['language']} here")
            return
        if params["cwd"] == "/missing":
            self._connection.deny(number, "exec-refused", errno="ENOENT", message="/missing: not there")
            return
        context = FakeContext(params["context_id"], params["language"], params["cwd"] or "/home/user", params["env"])
        self._start(context)
        self._accept(number, {"context": context.info()})

    def _context_list(self, number: int, params: Json) -> None:
        self._accept(number, {"contexts": [context.info() for context in self.contexts.values()]})

    def _context_restart(self, number: int, params: Json) -> None:
        if (context := self._context(number, params)) is not None:
            context.count = 0
            self._stop(context)
            self._accept(number, {"context": context.info()})

    def _context_interrupt(self, number: int, params: Json) -> None:
        if (context := self._context(number, params)) is not None:
            if context.running is not None:
                self._interrupt(context.running)
            self._accept(number, {})

    def _context_remove(self, number: int, params: Json) -> None:
        if (context := self._context(number, params)) is not None:
            del self.contexts[context.context_id]
            self._stop(context)
            self._accept(number, {})

    def _stop(self, context: FakeContext) -> None:
        if context.running is not None:
            context.running.killed.set()

    def _start(self, context: FakeContext) -> None:
        self.contexts[context.context_id] = context
        self._spawn(self._serve(context))

    def _accept(self, number: int, body: Json) -> None:
        self._connection.accept(number, body)
        self._connection.finish(number)

    def _found(self, number: int, params: Json) -> FakeCell | None:
        cell = self.cells.get(params["cell_id"])
        if cell is None:
            self._connection.deny(number, "not-found", message=f"no cell {params['cell_id']}")
        return cell

    def _context(self, number: int, params: Json) -> FakeContext | None:
        context = self.contexts.get(params["context_id"])
        if context is None:
            self._connection.deny(number, "not-found", message=f"no context {params['context_id']}")
        return context

    async def _carry(self, cell: FakeCell, number: int, offset: int) -> None:
        """From the log to one follower, until the end."""
        told: int | None = None
        following = 0
        while self._runs.get(number) is cell:
            for record in list(cell.records):
                if record.number < following:
                    continue
                following = record.number + 1
                await self._tell(cell, number, record, offset)
                if self._runs.get(number) is not cell:
                    return
            if cell in cell.context.queue and told != (place := cell.context.queue.index(cell)):
                told = place
                if place:
                    self._connection.send_message(number, {"event": "queued", "place": place})
            if cell.gone:
                self._connection.finish(number)
                return
            self._wake()
            with suppress(TimeoutError):
                await asyncio.wait_for(cell.news.wait(), 0.01)
            cell.news.clear()

    async def _tell(self, cell: FakeCell, number: int, record: Record, asked: int) -> None:
        what = record.what
        if isinstance(what, dict):
            if record.offset >= asked:
                self._connection.send_message(number, what)
            if what["event"] == "end":
                self._connection.finish(number)
                self._runs.pop(number)
                cell.followers.pop(number)
            self._wake()
        elif record.offset + len(what) > asked:
            await self.pump(number, record.sub, what[max(asked - record.offset, 0) :])
            if number in cell.followers:
                cell.followers[number] = record.offset + len(what)

    # ------------------------------------------------------------------------------------ work

    async def _serve(self, context: FakeContext) -> None:
        while True:
            while not context.queue:
                context.more.clear()
                await context.more.wait()
            cell = context.running = context.queue.popleft()
            cell.state = "running"
            if cell.params.get("act") == "inspect":
                said = {"found": True, "data": {"text/plain": "print(...)", "no type": "x", "text/html": 3}}
                await cell.write(3, json.dumps(said).encode())
                self._end(cell, {"kind": "ok"})
                continue
            if cell.params.get("act") == "complete":
                matches = {"matches": ["print", "property"], "start": 0, "end": cell.params["cursor"]}
                await cell.write(3, json.dumps(matches).encode())
                self._end(cell, {"kind": "ok"})
                continue
            context.count += 1
            cell.say({"event": "begun", "execution_count": context.count})
            timeout_s = cell.params["timeout_s"]
            try:
                async with asyncio.timeout(timeout_s):
                    end = await self._run(cell, context)
            except TimeoutError:
                end = {"kind": "timed-out", "after_s": timeout_s, "state_kept": True}
            if end is not None:
                self._end(cell, end)

    async def _run(  # noqa: C901 - a step a case
        self, cell: FakeCell, context: FakeContext
    ) -> Json | None:
        for line in cell.code.decode().splitlines():
            match line.split(" ", 1):
                case ["out" | "err" as stream, text]:
                    await cell.write(1 if stream == "out" else 2, text.encode() + b"\n")
                case ["flood", count]:
                    left = int(count)
                    while left and not cell.interrupted.is_set():
                        await cell.write(1, b"x" * min(left, 65_536))
                        left -= min(left, 65_536)
                        await asyncio.sleep(0)
                case ["result", body]:
                    await cell.write(3, body.encode())
                case ["big", count]:
                    await cell.write(3, _shown("x" * int(count)))
                case ["sleep", seconds]:
                    await asyncio.sleep(float(seconds))
                case ["hang", *hard]:
                    await (cell.killed if hard else cell.interrupted).wait()
                case ["stdin"]:
                    await cell.write(1, cell.stdin if cell.params["stdin"] else b"none")
                case ["limits"]:
                    await cell.write(3, _shown(json.dumps(cell.params["limits"])))
                case ["count"]:
                    await cell.write(3, _shown(str(context.count)))
                case ["die"]:
                    return {"kind": "context-died", "reason": "exited with 3"}
                case ["memory"]:
                    return {"kind": "out-of-memory"}
                case ["lie"]:
                    return {"kind": "error", "name": 7}
                case ["let-go"]:
                    cell.gone, context.running = True, None
                    return None
                case ["half"]:
                    await cell.write(3, _shown("a \ud83d b"))
                    return {"kind": "error", "name": "E", "value": "\udc00", "traceback": "\ud83d\ude00"}
                case ["1/0"]:
                    return {"kind": "error", "name": "ZeroDivisionError", "value": "division", "traceback": "tb"}
                case _:
                    await cell.write(3, _shown(line))
            if cell.killed.is_set():
                return {"kind": "context-died", "reason": "killed by signal 9"}
            if cell.interrupted.is_set():
                return {"kind": "interrupted", "state_kept": True}
        return {"kind": "ok"}

    def _end(self, cell: FakeCell, end: Json) -> None:
        files = [{"path": "/home/user/a", "change": "created"}] if cell.code.startswith(b"out") else []
        more = {"execution_count": cell.context.count, "duration_ms": 3, "files_changed": files, "files_cut": 0}
        cell.say({"event": "end", "end": end, "left_out": {"results": 0, "result_bytes": 0}} | more)
        cell.end, cell.state = end, "ended"
        if cell.context.running is cell:
            cell.context.running = None
        self._wake()


def _shown(text: str) -> bytes:
    body = {"type": "result", "data": {"text/plain": text}, "metadata": {}, "update": False, "cut": {}}
    return json.dumps(body).encode()
