"""A sandbox's commands: run one to its end, or start one and follow it."""

from __future__ import annotations

import binascii
import json
from collections.abc import AsyncIterable, AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from casemate.errors import CasemateError, NotFound, StateConflict
from casemate.sdk._async.beside import beside
from casemate.sdk._async.client import AsyncClient
from casemate.sdk._async.terminals import AsyncTerminal, first_event
from casemate.sdk.results import (
    CommandFailed,
    ExecEnd,
    ExecResult,
    Exited,
    Output,
    exec_end_from_json,
)
from casemate.sdk.streams import MAX_OUTPUT_BYTES, Kept

SHELL = ("/bin/sh", "-c")
LOGIN = (*SHELL, 'test -x "$SHELL" && exec "$SHELL" -l; exec /bin/sh -l')
Sink = Callable[[bytes], object]


class AsyncExec:
    """A command under way. ``output()`` is to be read to its end; then ``end`` says how it ended."""

    def __init__(self, client: AsyncClient, path: str, events: AsyncIterator[dict[str, Any]], exec_id: str, pid: int):
        self.exec_id = exec_id
        self.pid = pid
        self.end: ExecEnd | None = None
        self._client = client
        self._path = f"{path}/execs/{exec_id}"
        self._events = events

    async def output(self) -> AsyncIterator[Output]:
        """What it writes, as it comes. Not reading holds the command up once its pipe is full."""
        async for event in self._events:
            match event.get("event"):
                case "stdout" | "stderr" as stream:
                    yield Output(stream, event["offset"], binascii.a2b_base64(event["data"]))
                case "end":
                    self.end = exec_end_from_json(event)
                    return

    async def wait(self) -> ExecEnd:
        """Its end; output that nobody has read is dropped."""
        async for _ in self.output():
            pass
        assert self.end is not None
        return self.end

    async def feed(self, data: bytes | AsyncIterable[bytes], *, eof: bool = True) -> None:
        """Write to its standard input, which must have been asked for; *eof* closes it afterwards.

        Waits while the command does not read. Raises StateConflict when it has ended.
        """
        await self._client.request(
            "POST",
            f"{self._path}/stdin",
            content=data,
            params={"eof": "1"} if eof else None,
            answer_s=None,  # as long as the command lives, which is known and bounded elsewhere
            write_s=None,
        )

    async def signal(self, name: str) -> None:
        """Send a signal, as ``INT``, to it and all its children that share its process group."""
        await self._client.call("POST", f"{self._path}/signal", body={"signal": name})


class AsyncCommands:
    def __init__(self, client: AsyncClient, path: str) -> None:
        self._client = client
        self._path = path

    async def run(
        self,
        cmd: str | Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        timeout_s: float | None = None,
        stdin: bytes | str | None = None,
        on_stdout: Sink | None = None,
        on_stderr: Sink | None = None,
        check: bool = False,
        max_output_bytes: int = MAX_OUTPUT_BYTES,
    ) -> ExecResult:
        """Run a command to its end. A string goes through ``/bin/sh -c``, a list as it is.

        *on_stdout* and *on_stderr* get each piece of bytes as it comes.
        Raises ExecRefused when it cannot be started, CommandFailed with *check* unless it exits with 0.
        """
        argv = [*SHELL, cmd] if isinstance(cmd, str) else list(cmd)
        given = stdin.encode() if isinstance(stdin, str) else stdin
        sinks = {"stdout": on_stdout, "stderr": on_stderr}
        kept = {"stdout": Kept(max_output_bytes), "stderr": Kept(max_output_bytes)}

        async def collect(running: AsyncExec) -> None:
            async for piece in running.output():
                kept[piece.stream].add(piece.data)
                sink = sinks[piece.stream]
                if sink is not None:
                    sink(piece.data)

        started = self.start(argv, env=env, cwd=cwd, user=user, timeout_s=timeout_s, stdin=given is not None)
        async with started as running:
            if given is None:
                await collect(running)
            else:
                async with beside(partial(_feed_all, running, given)):
                    await collect(running)
        end = running.end
        if end is None:
            raise CasemateError("the daemon did not say how the command ended")
        result = ExecResult(
            end.end,
            kept["stdout"].value(),
            kept["stderr"].value(),
            kept["stdout"].dropped_bytes + kept["stderr"].dropped_bytes,
            end.duration_ms,
            end.cpu_ms,
            end.peak_memory_mib,
        )
        if check and result.end != Exited(0):
            raise CommandFailed(result)
        return result

    @asynccontextmanager
    async def start(
        self,
        argv: Sequence[str],
        *,
        script: str | None = None,
        cold: bool = False,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        timeout_s: float | None = None,
        stdin: bool = False,
        detach: bool = False,
    ) -> AsyncIterator[AsyncExec]:
        """Start a command and follow it; leaving the block before its end kills it, unless *detach*.

        With *script*, a Python file in the sandbox, *argv* is its ``sys.argv``: it runs in a copy of an
        interpreter that has numpy, pandas and matplotlib loaded, with *cold* in a new one.
        Raises ExecRefused, NotFound for a user that is not there.
        """
        body = {
            "argv": list(argv),
            "script": script,
            "cold": cold,
            "env": dict(env or {}),
            "cwd": cwd,
            "user": user,
            "timeout_s": timeout_s,
            "stdin": stdin,
            "on_disconnect": "keep" if detach else "kill",
            "stream": True,
        }
        async with self._client.lines("POST", f"{self._path}/execs", body=body) as events:
            first = await anext(events)
            yield AsyncExec(self._client, self._path, events, str(first["exec_id"]), int(first["pid"]))

    @asynccontextmanager
    async def attach(self, exec_id: str, *, stdout_offset: int = 0, stderr_offset: int = 0) -> AsyncIterator[AsyncExec]:
        """Follow a command from these offsets, or from where what is still held begins; leaving changes nothing.

        Raises NotFound, RequestError for an offset past the end.
        """
        params = {"stdout_offset": str(stdout_offset), "stderr_offset": str(stderr_offset)}
        async with self._client.lines("GET", f"{self._path}/execs/{exec_id}/output", params=params) as events:
            first = await anext(events)
            yield AsyncExec(self._client, self._path, events, str(first["exec_id"]), int(first["pid"]))

    @asynccontextmanager
    async def terminal(
        self,
        argv: Sequence[str] = LOGIN,
        *,
        rows: int = 24,
        cols: int = 80,
        term: str = "xterm-256color",
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        timeout_s: float | None = None,
        detach: bool = False,
    ) -> AsyncIterator[AsyncTerminal]:
        """Start a program on a terminal, by default the user's shell; leaving before its end kills it.

        With *detach* it then runs on. Raises ExecRefused, NotFound for a user that is not there.
        """
        body = {
            "argv": list(argv),
            "env": dict(env or {}),
            "cwd": cwd,
            "user": user,
            "timeout_s": timeout_s,
            "stdin": True,
            "on_disconnect": "keep" if detach else "kill",
            "pty": {"rows": rows, "cols": cols, "term": term},
        }
        async with self._client.socket(f"{self._path}/terminal") as socket:
            await socket.send(json.dumps(body))
            yield AsyncTerminal(socket, await first_event(socket))

    @asynccontextmanager
    async def attach_terminal(self, exec_id: str, *, offset: int = 0) -> AsyncIterator[AsyncTerminal]:
        """Take up a detached program on a terminal, from *offset* on; leaving changes nothing for it."""
        async with self._client.socket(f"{self._path}/execs/{exec_id}/terminal?offset={offset}") as socket:
            yield AsyncTerminal(socket, await first_event(socket))

    async def signal(self, exec_id: str, name: str) -> None:
        """Send a signal, as ``INT``, to a command's process group. Raises NotFound, StateConflict when it has ended."""
        await self._client.call("POST", f"{self._path}/execs/{exec_id}/signal", body={"signal": name})

    async def remove(self, exec_id: str) -> None:
        """Forget an ended command and its output. Raises NotFound, StateConflict while it runs."""
        await self._client.call("DELETE", f"{self._path}/execs/{exec_id}")

    async def list(self) -> list[dict[str, Any]]:
        """The commands the sandbox knows of: running ones, and ended ones whose output is still held."""
        found = await self._client.call("GET", f"{self._path}/execs")
        return list(found["execs"])


async def _feed_all(running: AsyncExec, data: bytes) -> None:
    try:
        await running.feed(data)
    except (StateConflict, NotFound):
        return  # it ended without reading all of it, as programs may
