"""``/v1/sandboxes/{ref}/terminal`` and ``…/execs/{exec_id}/terminal``: a program on a terminal, over a WebSocket.

    client                                   server
    {"argv": …, "pty": {…}}  (start only) ─>
                                          <─ {"event": "started", "exec_id": …, "pid": …, "stdout_offset": …}
    bytes: what is typed                  ─>
    {"op": "resize"|"signal"|"eof", …}    ─> <─ bytes: what the program writes
                                          <─ {"event": "end", …} or {"event": "error", "error": {…}}, and close

Objects are text messages; ``{"event": "keepalive"}`` means nothing. A client that does not read holds the program
up; one that leaves ends it, unless ``on_disconnect`` is keep.
"""

from __future__ import annotations

from typing import Annotated, Literal

import anyio
from pydantic import Field, TypeAdapter
from starlette.websockets import WebSocket

from casemate.api.native.execs import MAX_OFFSET, StartExec, exec_id_of, watched
from casemate.api.native.requests import Body, Query, find_handle, parsed, read_query, using
from casemate.api.native.sockets import Talk, first_text, together
from casemate.errors import InvalidSpec, StateConflict
from casemate.sandbox import Handle, Sandboxes, execs


class OffsetQuery(Query):
    offset: int = Field(0, ge=0, le=MAX_OFFSET)


class Resize(Body):
    op: Literal["resize"]
    rows: int
    cols: int


class SendSignal(Body):
    op: Literal["signal"]
    signal: str


class EndInput(Body):
    op: Literal["eof"]


Order = Annotated[Resize | SendSignal | EndInput, Field(discriminator="op")]
_ORDER: TypeAdapter[Resize | SendSignal | EndInput] = TypeAdapter(Order)


class Terminals:
    def __init__(self, sandboxes: Sandboxes) -> None:
        self._sandboxes = sandboxes

    async def start(self, socket: WebSocket, talk: Talk) -> None:
        """What to run comes as the first message: an address is no place for a command line."""
        handle = find_handle(socket, self._sandboxes)
        await talk.accept()
        spec = await _wish(talk)
        async with using(handle) as link, execs.start(link, spec) as running:
            await _carry(handle, running, talk)

    async def attach(self, socket: WebSocket, talk: Talk) -> None:
        """From ``?offset=`` on, or from where what is still held begins."""
        handle, exec_id = find_handle(socket, self._sandboxes), exec_id_of(socket)
        offset = read_query(socket, OffsetQuery).offset
        async with using(handle) as link, watched(link, exec_id, offset, 0) as running:
            await talk.accept()
            await _carry(handle, running, talk)


async def _wish(talk: Talk) -> execs.ExecSpec:
    spec = parsed(StartExec, await first_text(talk)).spec()
    if spec.pty is None:
        raise InvalidSpec("pty is missing", hint='as "pty": {"rows": 24, "cols": 80}')
    return spec


async def _carry(handle: Handle, running: execs.Exec, talk: Talk) -> None:
    """Both ways until the program ends or the client leaves. What is said is use of the sandbox; silence is none."""
    where = {"stdout_offset": running.offsets["stdout"]}
    await talk.say({"event": "started", "exec_id": running.exec_id, "pid": running.pid} | where)
    async with together() as tasks:
        tasks.start_soon(_listen, handle, running, talk, tasks.cancel_scope)
        tasks.start_soon(talk.watch, tasks.cancel_scope)
        with handle.usage.looking_on():
            while isinstance(item := await running.read(), execs.Output):
                handle.usage.touch()
                await talk.put(item.data)
        await talk.say({"event": "end"} | item.to_json())
        tasks.cancel_scope.cancel()


async def _listen(handle: Handle, running: execs.Exec, talk: Talk, over: anyio.CancelScope) -> None:
    while (message := await talk.receive()) is not None:
        await handle.awake()
        try:
            if isinstance(message, bytes):
                await running.feed(message)
            else:
                await _obey(running, parsed(_ORDER, message))
        except StateConflict:
            continue  # it has ended; its end is on the way
    over.cancel()


async def _obey(running: execs.Exec, order: Resize | SendSignal | EndInput) -> None:
    match order:
        case Resize():
            await running.resize(execs.Window(order.rows, order.cols))
        case SendSignal():
            await running.signal(order.signal)
        case EndInput():
            await running.end_input()
