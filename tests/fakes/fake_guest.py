"""A guest in this process: the real wire on a socketpair, programs that are coroutines of the test.

It serves what the API needs served, as the agent does, and counts what it was made to do.
"""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass, field
from typing import Any

from tests.fakes.fake_code import FakeCode

from casemate import wire

RING_BYTES = 2**20


@dataclass
class Program:
    """An exec: its two streams, its input, its end."""

    exec_id: str
    argv: list[str]
    on_disconnect: str
    rings: dict[int, bytearray] = field(default_factory=lambda: {1: bytearray(), 2: bytearray()})
    starts: dict[int, int] = field(default_factory=lambda: {1: 0, 2: 0})
    sent: dict[int, int] = field(default_factory=lambda: {1: 0, 2: 0})
    produced: int = 0
    fed: bytearray = field(default_factory=bytearray)
    input_ended: bool = False
    end: dict[str, Any] | None = None
    channel: int | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None

    def finish(self, end: dict[str, Any]) -> None:
        self.end = self.end or end
        self.changed.set()


class Guest:
    def __init__(self) -> None:
        self.host_end, self._stream = socket.socketpair()
        self.host_end.setblocking(False)
        self._stream.setblocking(False)
        self.connection = wire.Connection(wire.Side.GUEST)
        self._wake = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self.programs: dict[str, Program] = {}
        self.files: dict[str, bytes] = {}
        self.uploads: dict[int, tuple[dict[str, Any], bytearray]] = {}
        self.torn: list[str] = []
        self.code = FakeCode(self.connection, self.pump, self._spawn, self._wake.set)
        self.stats: dict[str, Any] = {}  # what it answers to control stats
        self.activity: dict[str, Any] | None = None  # to control activity; None: it does not know the word
        self.refusal = "not-served"  # how it says so
        self.asked = 0  # how often
        self.running = asyncio.Event()  # whether its vCPUs run; it hears and says nothing while they don't
        self.running.set()
        self.alone = True  # no machine around it that closes the host's end
        self.kept = False  # it is saved: its programs outlive its machine

    async def run(self) -> None:
        writer = asyncio.create_task(self._write())
        loop = asyncio.get_running_loop()
        try:
            while data := await loop.sock_recv(self._stream, 262_144):
                await self.running.wait()
                for event in self.connection.receive(data):
                    self._on(event)
                self._wake.set()
        except OSError:
            pass
        finally:
            programs = {*self._tasks, *(p.task for p in self.programs.values() if p.task)}
            for task in {writer} if self.kept else {writer, *programs}:
                task.cancel()
            self._stream.close()
            if self.alone:
                self.host_end.close()

    async def _write(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._wake.wait()
            await self.running.wait()
            self._wake.clear()
            while chunk := self.connection.outgoing():
                await loop.sock_sendall(self._stream, chunk)

    async def pump(self, number: int, sub: int, data: bytes) -> None:
        """Send with credit; the window is what holds a program up."""
        view = memoryview(data)
        while view:
            taken = self.connection.send(number, sub, view)
            view = view[taken:]
            self._wake.set()
            if view:
                await asyncio.sleep(0.001)

    def _on(self, event: wire.Event) -> None:
        match event:
            case wire.Opened(kind="exec"):
                getattr(self, "_exec_" + event.params["op"])(event.channel, event.params)
            case wire.Opened(kind="file"):
                getattr(self, "_file_" + event.params["op"])(event.channel, event.params)
            case wire.Opened(kind="control", params={"op": "stats"}):
                self.connection.accept(event.channel, self.stats)
                self.connection.finish(event.channel)
            case wire.Opened(kind="control", params={"op": "activity"}):
                self.asked += 1
                if self.activity is None:
                    self.connection.deny(event.channel, self.refusal, "an older agent")
                else:
                    self.connection.accept(event.channel, self.activity)
                    self.connection.finish(event.channel)
            case wire.Opened(kind="cell" | "context"):
                self.code.on_opened(event.kind, event.channel, event.params)
            case wire.Data():
                self._on_data(event)
            case wire.Message():
                program = self._at(event.channel)
                if program and event.body.get("op") == "stdin-eof":
                    program.input_ended = True
                    program.changed.set()
            case wire.Finished():
                self._on_finished(event.channel)
            case wire.Reset():
                self._on_reset(event.channel)

    def _on_data(self, event: wire.Data) -> None:
        if self.code.on_data(event.channel, event.sub, event.data):
            pass
        elif event.channel in self.uploads:
            self.uploads[event.channel][1].extend(event.data)
        elif program := self._at(event.channel):
            if program.argv[0] == "deaf":
                return
            program.fed += event.data
            program.changed.set()
        self.connection.consumed(event.channel, len(event.data))

    def _on_finished(self, number: int) -> None:
        if self.code.on_finished(number):
            return
        if number in self.uploads:
            params, data = self.uploads.pop(number)
            self.files[params["path"]] = bytes(data)
            self.connection.send_message(number, {"event": "written", "size": len(data)})
            self.connection.finish(number)
        elif program := self._at(number):
            program.channel = None
            self.connection.finish(number)

    def _on_reset(self, number: int) -> None:
        self.code.on_reset(number)
        if number in self.uploads:
            self.torn.append(self.uploads.pop(number)[0]["path"])
        program = self._at(number)
        if program:
            program.channel = None
            if program.on_disconnect == "kill":
                program.finish({"kind": "signaled", "signal": 9})

    def _at(self, number: int) -> Program | None:
        return next((p for p in self.programs.values() if p.channel == number), None)

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # ------------------------------------------------------------------------------ execs

    def _exec_start(self, number: int, params: dict[str, Any]) -> None:
        if params["argv"][0] == "missing":
            self.connection.deny(number, "exec-refused", errno="ENOENT", message="no such program: missing")
            return
        program = Program(params["exec_id"], params["argv"], params["on_disconnect"], channel=number)
        self.programs[program.exec_id] = program
        self.connection.accept(number, {"exec_id": program.exec_id, "pid": 42})
        program.task = asyncio.create_task(self._run(program))
        self._spawn(self._carry(program, number, {1: 0, 2: 0}))

    def _exec_attach(self, number: int, params: dict[str, Any]) -> None:
        program = self.programs.get(params["exec_id"])
        if program is None:
            self.connection.deny(number, "not-found", message=f"no exec {params['exec_id']}")
            return
        wanted = {1: params["stdout_offset"], 2: params["stderr_offset"]}
        if any(at > program.starts[sub] + len(program.rings[sub]) for sub, at in wanted.items()):
            self.connection.deny(number, "bad-offset", message="past the end")
            return
        actual = {sub: max(at, program.starts[sub]) for sub, at in wanted.items()}
        program.channel = number
        body = {"exec_id": program.exec_id, "pid": 42, "stdout_offset": actual[1], "stderr_offset": actual[2]}
        self.connection.accept(number, body)
        self._spawn(self._carry(program, number, actual))

    def _exec_signal(self, number: int, params: dict[str, Any]) -> None:
        program = self.programs.get(params["exec_id"])
        if program is None:
            self.connection.deny(number, "not-found", message="no such exec")
            return
        program.finish({"kind": "signaled", "signal": {"INT": 2, "KILL": 9}.get(params["signal"], 15)})
        self.connection.accept(number)
        self.connection.finish(number)

    def _exec_remove(self, number: int, params: dict[str, Any]) -> None:
        del self.programs[params["exec_id"]]
        self.connection.accept(number)
        self.connection.finish(number)

    def _exec_list(self, number: int, params: dict[str, Any]) -> None:
        known = [{"exec_id": p.exec_id, "argv": p.argv} for p in self.programs.values()]
        self.connection.accept(number, {"execs": known})
        self.connection.finish(number)

    async def _carry(self, program: Program, number: int, offsets: dict[int, int]) -> None:
        """From the rings to whoever is attached, until the end."""
        while program.channel == number:
            for sub in (1, 2):
                ring, start = program.rings[sub], program.starts[sub]
                if piece := bytes(ring[offsets[sub] - start : offsets[sub] - start + 65_536]):
                    await self.pump(number, sub, piece)
                    offsets[sub] += len(piece)
                    program.sent[sub] = offsets[sub]
            behind = any(offsets[s] < program.starts[s] + len(program.rings[s]) for s in (1, 2))
            if program.end is not None and not behind:
                usage = {"duration_ms": 1.5, "cpu_ms": 1.0, "peak_memory_mib": 2.0}
                self.connection.send_message(number, {"event": "end", "end": program.end, **usage})
                self.connection.finish(number)
                self._wake.set()
                return
            if not behind:
                await asyncio.sleep(0.002)

    async def _write_out(self, program: Program, sub: int, data: bytes) -> None:
        """A write to a pipe: held up while attached and the ring is full, else the oldest bytes go."""
        ring = program.rings[sub]
        while program.channel is not None and len(ring) >= RING_BYTES and program.end is None:
            if program.sent[sub] > program.starts[sub]:
                self._drop(program, sub, program.sent[sub] - program.starts[sub])
            else:
                await asyncio.sleep(0.001)
        ring += data
        program.produced += len(data)
        if program.channel is None and len(ring) > RING_BYTES:
            self._drop(program, sub, len(ring) - RING_BYTES)

    @staticmethod
    def _drop(program: Program, sub: int, count: int) -> None:
        del program.rings[sub][:count]
        program.starts[sub] += count

    async def _run(self, program: Program) -> None:
        match program.argv:
            case ["echo", text]:
                await self._write_out(program, 1, text.encode())
            case ["both"]:
                await self._write_out(program, 1, b"out")
                await self._write_out(program, 2, b"err")
            case ["flood", count]:
                left = int(count)
                while left and program.end is None:
                    piece = bytes([left // 65_536 % 256]) * min(left, 65_536)
                    await self._write_out(program, 1, piece)
                    left -= len(piece)
                    await asyncio.sleep(0)
            case ["cat"]:
                while not (program.input_ended and not program.fed):
                    if not program.fed:
                        program.changed.clear()
                        await program.changed.wait()
                    piece, program.fed = bytes(program.fed), bytearray()
                    await self._write_out(program, 1, piece)
            case ["exit", code]:
                program.finish({"kind": "exited", "code": int(code)})
            case ["lie"]:
                program.finish({"kind": "exited", "code": "seven"})
            case ["hang" | "deaf"]:
                while program.end is None:
                    program.changed.clear()
                    await program.changed.wait()
        program.finish({"kind": "exited", "code": 0})

    # ------------------------------------------------------------------------------- files

    def _stored(self, number: int, params: dict[str, Any]) -> bytes | None:
        data = self.files.get(params["path"])
        if data is None:
            self.connection.deny(number, "file-refused", errno="ENOENT", message=f"{params['path']}: not there")
        return data

    def _file_read(self, number: int, params: dict[str, Any]) -> None:
        if (data := self._stored(number, params)) is None:
            return
        end = None if params["length"] is None else params["offset"] + params["length"]
        self.connection.accept(number, {"size": len(data), "mode": 0o644})
        self._spawn(self._send_file(number, data[params["offset"] : end]))

    async def _send_file(self, number: int, data: bytes) -> None:
        await self.pump(number, 1, data)
        self.connection.finish(number)
        self._wake.set()

    def _file_write(self, number: int, params: dict[str, Any]) -> None:
        if params["path"] == "/root/x":
            self.connection.deny(number, "file-refused", errno="EACCES", message="not yours")
            return
        self.uploads[number] = (params, bytearray())
        self.connection.accept(number)

    def _file_stat(self, number: int, params: dict[str, Any]) -> None:
        if (data := self._stored(number, params)) is not None:
            self.connection.accept(number, self._entry(params["path"], data))
            self.connection.finish(number)

    def _file_list(self, number: int, params: dict[str, Any]) -> None:
        self.connection.accept(number, {"entries": []})
        for path, data in self.files.items():
            self.connection.send_message(number, {"entries": [self._entry(path, data)]})
        self.connection.finish(number)

    def _file_remove(self, number: int, params: dict[str, Any]) -> None:
        if self._stored(number, params) is not None:
            del self.files[params["path"]]
            self.connection.accept(number)
            self.connection.finish(number)

    @staticmethod
    def _entry(path: str, data: bytes) -> dict[str, Any]:
        fixed = {"type": "file", "mode": 0o644, "uid": 1000, "gid": 1000, "mtime_ns": 5}
        return {"name": path.rsplit("/", 1)[-1], "path": path, "size": len(data), **fixed}
