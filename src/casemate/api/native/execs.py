"""``/v1/sandboxes/{ref}/execs``: start, follow, feed, signal, list."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, nullcontext
from functools import partial
from typing import Any, Literal

import anyio
from pydantic import BaseModel, Field
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp

from casemate.api.native.operations import JSON, NDJSON, OCTETS, operation
from casemate.api.native.requests import Body, Query, find_handle, read_body, read_query, using
from casemate.api.native.streams import Lines, lines
from casemate.errors import InvalidSpec
from casemate.sandbox import Handle, Link, Sandboxes, execs

MAX_OFFSET = 2**62
Opener = Callable[[Link], AbstractAsyncContextManager[execs.Exec]]


class PtyBody(Body):
    """A terminal's size and kind."""

    rows: int = 24
    cols: int = 80
    term: str = "xterm-256color"

    def spec(self) -> execs.Pty:
        """Raises InvalidSpec."""
        return execs.Pty(execs.Window(self.rows, self.cols), self.term)


class StartExec(Body):
    """With *script*, a path in the guest, *argv* is its ``sys.argv``: by default just the path."""

    argv: list[str] | None = None
    script: str | None = None
    cold: bool = False
    env: dict[str, str] | None = None
    cwd: str | None = None
    user: str | None = None
    timeout_s: float | None = None
    stdin: bool = False
    on_disconnect: Literal["kill", "keep"] = "kill"
    stream: bool = True
    pty: PtyBody | None = None

    def spec(self) -> execs.ExecSpec:
        """Raises InvalidSpec."""
        argv = self.argv if self.argv is not None else [self.script] if self.script else []
        return execs.ExecSpec(
            argv=tuple(argv),
            script=self.script,
            cold=self.cold,
            env=self.env or {},
            cwd=self.cwd,
            user=self.user,
            timeout_s=self.timeout_s,
            stdin=self.stdin,
            on_disconnect=self.on_disconnect,
            pty=self.pty.spec() if self.pty is not None else None,
        )


class Signal(Body):
    signal: str


class OutputQuery(Query):
    stdout_offset: int = Field(0, ge=0, le=MAX_OFFSET)
    stderr_offset: int = Field(0, ge=0, le=MAX_OFFSET)


class StdinQuery(Query):
    eof: bool = False


class ExecStarted(BaseModel):
    exec_id: str
    pid: int


class Fed(BaseModel):
    written: int


class ExecList(BaseModel):
    execs: list[dict[str, Any]]


class Execs:
    """Knows which execs have a channel open, so that their input can take the same one."""

    def __init__(self, sandboxes: Sandboxes) -> None:
        self._sandboxes = sandboxes
        self._attached: dict[tuple[str, str], execs.Exec] = {}

    @operation(
        "Start a command, and follow it unless told not to", body=StartExec, answer=ExecStarted, gives=(NDJSON, JSON)
    )
    async def start(self, request: Request) -> Response | ASGIApp:
        body = await read_body(request, StartExec)
        handle, spec = find_handle(request, self._sandboxes), body.spec()
        if body.stream:  # who starts a command waits for it; a terminal may be left open and silent
            waits = spec.pty is None
            return lines(partial(self._follow, handle, lambda link: execs.start(link, spec), waits))
        async with using(handle) as link, execs.start(link, spec) as running:
            await running.detach()
        return JSONResponse({"exec_id": running.exec_id, "pid": running.pid}, 201)

    @operation("Follow a command from these offsets on", query=OutputQuery, gives=(NDJSON,))
    async def output(self, request: Request) -> ASGIApp:
        query = read_query(request, OutputQuery)
        handle, exec_id = find_handle(request, self._sandboxes), exec_id_of(request)
        offsets = query.stdout_offset, query.stderr_offset
        return lines(partial(self._follow, handle, lambda link: watched(link, exec_id, *offsets), False))

    @operation("Write to a command's standard input", query=StdinQuery, answer=Fed, takes=OCTETS)
    async def stdin(self, request: Request) -> Response:
        query = read_query(request, StdinQuery)
        handle, count = find_handle(request, self._sandboxes), 0
        async with using(handle) as link, self._reach(handle, link, exec_id_of(request)) as running:
            async for piece in request.stream():
                if piece:
                    await running.feed(piece)
                    count += len(piece)
            if query.eof:
                await running.end_input()
        return JSONResponse({"written": count})

    @operation("Send a command a signal", body=Signal)
    async def signal(self, request: Request) -> Response:
        body = await read_body(request, Signal)
        async with using(find_handle(request, self._sandboxes)) as link:
            await execs.send_signal(link, exec_id_of(request), body.signal)
        return JSONResponse({})

    @operation("Forget a command that has ended")
    async def remove(self, request: Request) -> Response:
        async with using(find_handle(request, self._sandboxes)) as link:
            await execs.remove(link, exec_id_of(request))
        return JSONResponse({})

    @operation("List a sandbox's commands", answer=ExecList)
    async def list(self, request: Request) -> Response:
        async with using(find_handle(request, self._sandboxes)) as link:
            return JSONResponse({"execs": await execs.listed(link)})

    async def _follow(self, handle: Handle, opened: Opener, waits: bool, out: Lines) -> None:
        """Write down all an exec says until its end. A client that does not read holds the exec up.

        The sandbox is in use for as long as somebody *waits*; by one who only looks on, when there is something to see.
        """
        usage = handle.usage
        async with using(handle) as link, opened(link) as running:
            with self._known(handle, running), nullcontext() if waits else usage.looking_on():
                await out.say({"event": "started", "exec_id": running.exec_id, "pid": running.pid} | _at(running))
                for stream, asked in running.asked.items():
                    if running.offsets[stream] > asked:
                        await out.say({"event": "gap", "stream": stream, "from": asked, "to": running.offsets[stream]})
                while isinstance(item := await running.read(), execs.Output):
                    usage.touch()
                    await out.say_output(item)
                await out.say({"event": "end"} | item.to_json())

    @contextmanager
    def _known(self, handle: Handle, running: execs.Exec) -> Iterator[None]:
        key = handle.info.id, running.exec_id
        self._attached[key] = running
        try:
            yield
        finally:
            if self._attached.get(key) is running:
                del self._attached[key]

    @asynccontextmanager
    async def _reach(self, handle: Handle, link: Link, exec_id: str) -> AsyncIterator[execs.Exec]:
        """The exec through the channel of whoever follows it, or else through one of our own."""
        running = self._attached.get((handle.info.id, exec_id))
        if running is not None:
            yield running
            return
        async with watched(link, exec_id, 0, 0) as running, anyio.create_task_group() as tasks:
            tasks.start_soon(_discard, running)
            yield running
            tasks.cancel_scope.cancel()


@asynccontextmanager
async def watched(link: Link, exec_id: str, stdout_offset: int, stderr_offset: int) -> AsyncIterator[execs.Exec]:
    """Attached as one who only looks: leaving changes nothing for the exec."""
    async with execs.attach(link, exec_id, stdout_offset, stderr_offset) as running:
        try:
            yield running
        finally:
            if not running.ended:
                with anyio.CancelScope(shield=True):
                    await running.detach()


async def _discard(running: execs.Exec) -> None:
    while isinstance(await running.read(), execs.Output):
        pass


def _at(running: execs.Exec) -> dict[str, int]:
    return {f"{stream}_offset": offset for stream, offset in running.offsets.items()}


def exec_id_of(request: HTTPConnection) -> str:
    exec_id: str = request.path_params["exec_id"]
    if not exec_id.isascii() or not exec_id.isalnum() or len(exec_id) > 64:
        raise InvalidSpec(f"{exec_id[:80]!r} is not the id of an exec")
    return exec_id
