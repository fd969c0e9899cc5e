"""``/v1/sandboxes/{ref}/code`` and ``…/cells``: run code in a context that keeps its names, follow it, interrupt it.

Lines of NDJSON, over a WebSocket one a message:
    {"event": "queued"|"begun", "cell_id", "context", …}      the first says the cell's id
    {"event": "stdout"|"stderr", "offset", "data": base64}
    {"event": "result", "offset", "result": a bundle}         or "left-out" with its size and why
    {"event": "end", "end": {"kind": …}, …, "offset"}

What is there at the same moment goes out in one write. A client that does not read holds its cell up.
"""

from __future__ import annotations

import binascii
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, nullcontext, suppress
from functools import partial
from typing import Any

import anyio
from pydantic import BaseModel, Field
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp
from starlette.websockets import WebSocket

from casemate.api.callers import Caller, Callers
from casemate.api.native.operations import NDJSON, operation
from casemate.api.native.requests import Body, Query, find_handle, parsed, read_body, read_query, using
from casemate.api.native.sockets import Talk, first_text, together
from casemate.api.native.streams import Lines, lines, to_line
from casemate.errors import CasemateError, GuestError, RequestError, StateConflict, VmmError
from casemate.sandbox import Handle, Link, Sandboxes, bundles, cells
from casemate.sandbox.execs import Output

MAX_BODY_BYTES = 40 * 2**20  # code and input of 16 MiB each, with some growth as JSON
MAX_OFFSET = 2**62
BATCH_BYTES = 65_536
FIRST_S = 0.05  # how long a cell that is next may take to begin before its place is told
Emit = Callable[[list[bytes], bool], Awaitable[None]]
Opener = Callable[[Link], AbstractAsyncContextManager[cells.Cell]]


class Limits(Body):
    """What one cell may show, where it is to be other than by default; a result's bytes are those of its JSON."""

    result_bytes: int | None = Field(None, ge=0, le=bundles.MAX_BYTES)
    results: int | None = Field(None, ge=0, le=1_000_000)
    text_bytes: int | None = Field(None, ge=0, le=bundles.MAX_BYTES)
    table_rows: int | None = Field(None, ge=0, le=20_000)
    table_columns: int | None = Field(None, ge=0, le=10_000)
    value_bytes: int | None = Field(None, ge=0, le=8_000)
    traceback_bytes: int | None = Field(None, ge=0, le=32_000)


class RunCode(Body):
    """*caller_timeout_s*: the cell is interrupted when its caller has not said for so long that it lives."""

    code: str
    context: str = "default"
    timeout_s: float | None = None
    grace_s: float | None = None
    stdin: str | None = None
    detach: bool = False
    limits: Limits | None = None
    user: str | None = None
    caller_timeout_s: float | None = Field(None, ge=0.5, le=3600)

    def spec(self) -> cells.RunCell:
        """Raises InvalidSpec."""
        return cells.RunCell(
            context=self.context,
            timeout_s=self.timeout_s,
            grace_s=self.grace_s,
            detach=self.detach,
            stdin=cells.encoded(self.stdin, "stdin") if self.stdin is not None else None,
            user=self.user,
            limits=self.limits.model_dump(exclude_none=True) if self.limits is not None else {},
        )


class Order(Body):
    op: str = Field(pattern="^interrupt$")


class OffsetQuery(Query):
    offset: int = Field(0, ge=0, le=MAX_OFFSET)


class CellList(BaseModel):
    cells: list[dict[str, Any]]


class Code:
    def __init__(self, sandboxes: Sandboxes) -> None:
        self._sandboxes = sandboxes
        self._callers = Callers()

    @operation("Run code in a context that keeps its names", body=RunCode, gives=(NDJSON,))
    async def run(self, request: Request) -> ASGIApp:
        body = await read_body(request, RunCode, MAX_BODY_BYTES)
        handle, spec = find_handle(request, self._sandboxes), body.spec()

        async def produce(out: Lines) -> None:
            await self._run(request, handle, body, spec, out.put_lines)

        return lines(produce)

    async def run_on_socket(self, socket: WebSocket, talk: Talk) -> None:
        """What to run comes as the first message; ``{"op": "interrupt"}`` may follow."""
        handle = find_handle(socket, self._sandboxes)
        await talk.accept()
        body = parsed(RunCode, await first_text(talk))
        spec = body.spec()
        async with together() as tasks:
            tasks.start_soon(_listen, handle, spec.cell_id, talk, tasks.cancel_scope)
            tasks.start_soon(talk.watch, tasks.cancel_scope)
            await self._run(socket, handle, body, spec, talk.put_lines)
            tasks.cancel_scope.cancel()

    @operation("Say that the caller of a cell lives")
    async def alive(self, request: Request) -> Response:
        find_handle(request, self._sandboxes)
        self._callers.heard_of(request, cell_id_of(request))
        return JSONResponse({})

    @operation("List the cells that wait, run, or are still held", answer=CellList)
    async def list(self, request: Request) -> Response:
        async with using(find_handle(request, self._sandboxes)) as link:
            return JSONResponse({"cells": [info.to_json() for info in await cells.listed(link)]})

    @operation("Follow a cell from this offset of its log on", query=OffsetQuery, gives=(NDJSON,))
    async def join(self, request: Request) -> ASGIApp:
        offset = read_query(request, OffsetQuery).offset
        handle, cell_id = find_handle(request, self._sandboxes), cell_id_of(request)

        async def produce(out: Lines) -> None:
            await _follow(handle, lambda link: cells.join(link, cell_id, offset), None, out.put_lines, joined=True)

        return lines(produce)

    @operation("Interrupt a cell, as Ctrl-C does")
    async def interrupt(self, request: Request) -> Response:
        async with using(find_handle(request, self._sandboxes)) as link:
            await cells.interrupt(link, cell_id_of(request))
        return JSONResponse({})

    async def _run(
        self, connection: HTTPConnection, handle: Handle, body: RunCode, spec: cells.RunCell, emit: Emit
    ) -> None:
        opened: Opener = lambda link: cells.run(link, body.code, spec)  # noqa: E731
        if body.detach:
            return await _follow(handle, opened, None, emit)
        caller = Caller.of(connection, body.caller_timeout_s)
        with self._callers.expected(connection, spec.cell_id, caller):
            return await _follow(handle, opened, partial(_guard, caller, spec), emit)


async def _follow(
    handle: Handle,
    opened: Opener,
    guard: Callable[[Link, anyio.CancelScope], Coroutine[Any, Any, None]] | None,
    emit: Emit,
    *,
    joined: bool = False,
) -> None:
    """Say all that a cell says until its end, beside *guard*. The sandbox's end is the cell's, once that has begun.

    The sandbox is in use while who started the cell waits; by one who *joined*, when there is something to see.
    """
    told = _Told()
    async with anyio.create_task_group() as tasks:
        try:
            async with using(handle) as link, opened(link) as cell:
                if guard is not None:
                    tasks.start_soon(guard, link, tasks.cancel_scope)
                told.cell = cell
                with handle.usage.looking_on() if joined else nullcontext():
                    await _carry(handle, cell, told, emit, joined)
        except (GuestError, VmmError, StateConflict) as error:
            if told.begun_at is None or not (handle.stopping or handle.ended.is_set()):
                raise
            await emit([told.sandbox_died(handle, error)], True)
        tasks.cancel_scope.cancel()
    if not told.ended and guard is not None:
        raise StateConflict("the cell was ended, because its caller stood still", hint="detach=true leaves it running")


class _Told:
    """What the client was told of a cell."""

    def __init__(self) -> None:
        self.cell: cells.Cell | None = None
        self.begun_at: float | None = None
        self.ended = False

    def line_of(self, item: cells.Item, cell: cells.Cell) -> bytes:
        match item:
            case Output():
                data = binascii.b2a_base64(item.data, newline=False)
                return b'{"event":"%b","offset":%d,"data":"%b"}' % (item.stream.encode(), item.offset, data)
            case cells.Result():
                return b'{"event":"result","offset":%d,"result":%b}' % (item.offset, item.body)
            case cells.Begun():
                self.begun_at = time.monotonic()
                return to_line(_named("begun", cell) | {"execution_count": item.execution_count})
            case cells.Queued():
                return to_line(_named("queued", cell) | {"place": item.place})
            case cells.Refused():
                said = {"offset": item.offset, "size": item.size_bytes, "reason": item.reason}
                return to_line({"event": "left-out"} | said)
            case _:
                self.ended = True
                return to_line({"event": "end"} | item.to_json() | {"offset": cell.offset})

    def sandbox_died(self, handle: Handle, error: GuestError | VmmError | StateConflict) -> bytes:
        assert self.cell is not None
        assert self.begun_at is not None
        self.ended = True
        why = handle.info.state_reason
        reason = {"code": why.code, "message": why.message} if why else {"code": error.code, "message": error.message}
        said: dict[str, Any] = {
            "end": {"kind": "sandbox-died", "reason": reason},
            "execution_count": None,
            "duration_ms": round((time.monotonic() - self.begun_at) * 1000, 3),
            "files_changed": [],
            "files_cut": -1,
            "left_out": {"results": 0, "result_bytes": 0},
        }
        return to_line({"event": "end"} | said | {"offset": self.cell.offset})


async def _carry(handle: Handle, cell: cells.Cell, told: _Told, emit: Emit, joined: bool) -> None:
    if joined:
        said = [to_line(_named("joined", cell) | {"offset": cell.offset})]
        if cell.offset > cell.asked:
            said.append(to_line({"event": "gap", "from": cell.asked, "to": cell.offset}))
        told.begun_at = time.monotonic()
    else:
        said = await _first(cell, told)
    size = sum(map(len, said))
    while not told.ended:
        if said and (size >= BATCH_BYTES or not cell.is_ready):
            await emit(said, False)
            said, size = [], 0
        try:
            item = await cell.read()
        except CasemateError:
            if said:  # what came before the failure is told before it
                await emit(said, False)
            raise
        said.append(told.line_of(item, cell))
        size += len(said[-1])
        handle.usage.touch()
    await emit(said, True)


async def _first(cell: cells.Cell, told: _Told) -> list[bytes]:
    """The line that says the cell's id: that it has begun, or its place in the queue."""
    soon = not cell.place
    if soon:
        with anyio.move_on_after(FIRST_S) as waited:
            await cell.wait_ready()
        soon = not waited.cancelled_caught
    item = await cell.read() if soon else cells.Queued(cell.place)
    if isinstance(item, cells.Begun | cells.Queued):
        return [told.line_of(item, cell)]
    return [told.line_of(cells.Queued(cell.place), cell), told.line_of(item, cell)]


async def _guard(caller: Caller, spec: cells.RunCell, link: Link, over: anyio.CancelScope) -> None:
    """When the caller can wait no more: interrupt its cell, and let go of it if that does not end it."""
    caller.hear()  # it could not know its cell's id before
    await caller.until_gone()
    with anyio.move_on_after(cells.GRACE_S if spec.grace_s is None else spec.grace_s):
        with suppress(RequestError, GuestError):  # it has ended, or is lost with its machine: who follows it says so
            await cells.interrupt(link, spec.cell_id)
        await anyio.sleep_forever()
    over.cancel()


async def _listen(handle: Handle, cell_id: str, talk: Talk, over: anyio.CancelScope) -> None:
    while (message := await talk.receive()) is not None:
        parsed(Order, message)
        async with handle.reach() as link:
            with suppress(StateConflict):  # it has ended; its end is on the way
                await cells.interrupt(link, cell_id)
    over.cancel()


def _named(event: str, cell: cells.Cell) -> dict[str, Any]:
    return {"event": event, "cell_id": cell.cell_id, "context": cell.context}


def cell_id_of(request: HTTPConnection) -> str:
    cell_id: str = request.path_params["cell_id"]
    cells.check_id("cell", cell_id)
    return cell_id
