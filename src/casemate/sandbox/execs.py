"""Programs in a guest: start, follow by offset, feed, signal. An exec may outlive its channel."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Literal

import anyio

from casemate import wire
from casemate.errors import AgentSilent, GuestError, InvalidSpec, ProtocolViolation, StateConflict
from casemate.sandbox import parse
from casemate.sandbox.channel import Channel
from casemate.sandbox.link import Link

Stream = Literal["stdout", "stderr"]
STREAMS: dict[int, Stream] = {1: "stdout", 2: "stderr"}  # by the sub of a DATA frame
MAX_PARAMS_BYTES = 60 * 1024  # one frame opens a channel; large input goes through stdin or a file
START_TIMEOUT_S = 30.0  # an overloaded emulated guest spawns slowly
DETACH_TIMEOUT_S = 10.0
MAX_WINDOW = 65_535
TERM = re.compile(r"[A-Za-z0-9][A-Za-z0-9+._-]{0,63}")
OVERDUE_S = 30.0  # how long after its time-out a guest may keep the end of an exec to itself
SIGNALS = frozenset({"HUP", "INT", "QUIT", "KILL", "USR1", "USR2", "TERM", "CONT", "STOP", "TSTP", "WINCH"})


@dataclass(frozen=True, slots=True)
class Window:
    """A terminal's size in characters. Raises InvalidSpec."""

    rows: int
    cols: int

    def __post_init__(self) -> None:
        if not (0 < self.rows <= MAX_WINDOW and 0 < self.cols <= MAX_WINDOW):
            raise InvalidSpec(f"rows and cols are from 1 to {MAX_WINDOW}")


@dataclass(frozen=True, slots=True)
class Pty:
    """The terminal a program is to have: its size, and its kind as TERM says it. Raises InvalidSpec."""

    window: Window
    term: str = "xterm-256color"

    def __post_init__(self) -> None:
        if not TERM.fullmatch(self.term):
            raise InvalidSpec(f"{self.term[:40]!r} is not the name of a terminal", hint="as xterm-256color")


@dataclass(frozen=True, slots=True)
class ExecSpec:
    """A checked wish. With *script* (a guest path) *argv* is the script's sys.argv. Raises InvalidSpec.

    With *pty* the program's input, output and errors are one terminal: what it writes is stdout.
    """

    argv: tuple[str, ...]
    script: str | None = None
    cold: bool = False
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: str | None = None
    user: str | None = None
    timeout_s: float | None = None
    stdin: bool = False
    on_disconnect: Literal["kill", "keep"] = "kill"
    pty: Pty | None = None

    def __post_init__(self) -> None:
        if not self.argv or not self.argv[0]:
            raise InvalidSpec("argv is empty", hint='argv is a list, as ["python3", "-V"]')
        texts = (*self.argv, self.script, self.cwd, self.user, *self.env, *self.env.values())
        if any("\0" in text for text in texts if text is not None):
            raise InvalidSpec("argv, script, cwd, user and env cannot hold a NUL character")
        if any(not name or "=" in name for name in self.env):
            raise InvalidSpec("env: a name is empty or has a '=' in it")
        if self.timeout_s is not None and not 0 < self.timeout_s <= 30 * 86_400:
            raise InvalidSpec(f"timeout_s is {self.timeout_s:g}; it must be over 0 and at most 30 days")
        if len(json.dumps(self.params("")).encode()) > MAX_PARAMS_BYTES:
            raise InvalidSpec(f"argv and env take more than {MAX_PARAMS_BYTES} bytes", hint="write a file or use stdin")

    def params(self, exec_id: str) -> dict[str, Any]:
        pty = self.pty
        return {
            "op": "start",
            "exec_id": exec_id,
            "argv": list(self.argv),
            "env": dict(self.env),
            "cwd": self.cwd,
            "user": self.user,
            "timeout_s": self.timeout_s,
            "stdin": self.stdin,
            "on_disconnect": self.on_disconnect,
            "cold": self.cold,
            "script": {"path": self.script} if self.script is not None else None,
            "pty": {"rows": pty.window.rows, "cols": pty.window.cols, "term": pty.term} if pty is not None else None,
        }


@dataclass(frozen=True, slots=True)
class Exited:
    code: int


@dataclass(frozen=True, slots=True)
class Signaled:
    signal: int


@dataclass(frozen=True, slots=True)
class TimedOut:
    after_s: float


@dataclass(frozen=True, slots=True)
class OutOfMemory:
    pass


End = Exited | Signaled | TimedOut | OutOfMemory
_KINDS: dict[type[End], str] = {
    Exited: "exited",
    Signaled: "signaled",
    TimedOut: "timed-out",
    OutOfMemory: "out-of-memory",
}


@dataclass(frozen=True, slots=True)
class Output:
    """*offset* counts the stream's bytes from its start."""

    stream: Stream
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Ended:
    end: End
    duration_ms: float
    cpu_ms: float | None
    peak_memory_mib: float | None

    def to_json(self) -> dict[str, Any]:
        end = {"kind": _KINDS[type(self.end)]}
        end |= {name: getattr(self.end, name) for name in type(self.end).__slots__}
        return {
            "end": end,
            "duration_ms": self.duration_ms,
            "cpu_ms": self.cpu_ms,
            "peak_memory_mib": self.peak_memory_mib,
        }


class Exec:
    """An exec somebody is attached to. One task reads it; others may feed it meanwhile."""

    def __init__(self, channel: Channel, asked: Mapping[Stream, int], timeout_s: float | None = None) -> None:
        body = channel.accepted
        self._overdue_at = None if timeout_s is None else channel.clock() + timeout_s + OVERDUE_S
        self.exec_id = parse.text(body, "exec_id", 64)
        self.pid = parse.whole(body, "pid")
        self.asked = asked
        self.offsets: dict[Stream, int] = {
            stream: parse.whole(body, f"{stream}_offset", low=offset) if f"{stream}_offset" in body else offset
            for stream, offset in asked.items()
        }
        self.ended = False
        self._channel = channel
        self._feeding = anyio.Lock()

    async def read(self) -> Output | Ended:
        """The next piece; the last one is Ended. Not reading stops the guest's process when its pipe is full.

        Raises GuestError when the exec was cut off, or its whole machine.
        """
        item = await self._receive()
        match item:
            case wire.Data(sub=1 | 2):
                stream = STREAMS[item.sub]
                offset = self.offsets[stream]
                self.offsets[stream] += len(item.data)
                return Output(stream, offset, item.data)
            case wire.Message(body={"event": "end"}):
                self.ended = True
                self._channel.finish()
                return _ended(item.body)
            case None:
                raise GuestError(f"the agent let go of exec {self.exec_id} before its end")
            case _:
                raise ProtocolViolation(f"exec {self.exec_id}: a message nobody sends")

    async def _receive(self) -> wire.Data | wire.Message | None:
        """The guest ends an exec at its time-out; we don't wait for ever for one that does not."""
        if self._overdue_at is None:
            return await self._channel.receive()
        while (left_s := self._overdue_at - self._channel.clock()) > 0:  # the time of a suspended one does not pass
            with anyio.move_on_after(left_s):
                return await self._channel.receive()
        raise AgentSilent(f"exec {self.exec_id} should have ended {OVERDUE_S:g} s ago", hint="kill the sandbox")

    async def feed(self, data: bytes | memoryview) -> None:
        """Write to its standard input; waits while it does not read. Pieces of two tasks do not mix."""
        async with self._feeding:
            with self._input():
                await self._channel.send(data)

    async def resize(self, window: Window) -> None:
        """Its terminal has another size now; nothing happens to an exec without one, or one that has ended."""
        await self._say({"op": "resize", "rows": window.rows, "cols": window.cols})

    async def signal(self, name: str) -> None:
        """To its process group. Raises InvalidSpec."""
        await self._say({"op": "signal", "signal": _signal(name)})

    async def _say(self, body: Mapping[str, Any]) -> None:
        with suppress(StateConflict):  # it has ended
            await self._channel.send_message(body)

    async def end_input(self) -> None:
        async with self._feeding:
            with self._input():
                await self._channel.send_message({"op": "stdin-eof"})

    @contextmanager
    def _input(self) -> Iterator[None]:
        over = StateConflict(f"exec {self.exec_id} has ended; it takes no more input")
        if self.ended:
            raise over
        try:
            yield
        except StateConflict as error:
            raise over from error

    async def detach(self) -> None:
        """Let it run on with nobody attached, whatever its ``on_disconnect`` says."""
        self._channel.finish()
        with anyio.move_on_after(DETACH_TIMEOUT_S):
            while await self._channel.receive() is not None:
                pass  # what the agent sent before it knew; it stays in the exec's ring


@asynccontextmanager
async def start(link: Link, spec: ExecSpec) -> AsyncIterator[Exec]:
    """Run a program. Leaving the block before its end without detach: ``on_disconnect`` holds.

    Raises ExecRefused with the guest kernel's errno, NotFound for a user, AgentSilent (it may have started).
    """
    async with link.open("exec", spec.params(new_exec_id()), timeout_s=START_TIMEOUT_S) as channel:
        yield Exec(channel, {"stdout": 0, "stderr": 0}, spec.timeout_s)


@asynccontextmanager
async def attach(link: Link, exec_id: str, stdout_offset: int = 0, stderr_offset: int = 0) -> AsyncIterator[Exec]:
    """Follow an exec from these offsets, or from later ones where its rings have lost the beginning.

    Raises NotFound, RequestError for an offset past the end.
    """
    params = {
        "op": "attach",
        "exec_id": exec_id,
        "stdout_offset": stdout_offset,
        "stderr_offset": stderr_offset,
    }
    async with link.open("exec", params) as channel:
        yield Exec(channel, {"stdout": stdout_offset, "stderr": stderr_offset})


async def send_signal(link: Link, exec_id: str, signal: str) -> None:
    """To the exec's process group. Raises NotFound, StateConflict when it has ended, InvalidSpec."""
    async with link.open("exec", {"op": "signal", "exec_id": exec_id, "signal": _signal(signal)}) as channel:
        channel.finish()


async def remove(link: Link, exec_id: str) -> None:
    """Forget an exec that has ended, with its output. Raises NotFound, StateConflict while it runs."""
    async with link.open("exec", {"op": "remove", "exec_id": exec_id}) as channel:
        channel.finish()


async def listed(link: Link) -> list[Mapping[str, Any]]:
    """What the agent knows of, as it says it: running ones and ended ones whose output is still held."""
    async with link.open("exec", {"op": "list"}) as channel:
        channel.finish()
        return parse.objects(channel.accepted, "execs")


def _signal(name: str) -> str:
    short = name.upper().removeprefix("SIG")
    if short not in SIGNALS:
        raise InvalidSpec(f"signal {name[:40]!r} is not known", hint=f"one of {', '.join(sorted(SIGNALS))}")
    return short


def new_exec_id() -> str:
    return secrets.token_hex(8)


def _ended(body: Mapping[str, Any]) -> Ended:
    return Ended(
        end=_end(parse.mapping(body, "end")),
        duration_ms=parse.number(body, "duration_ms"),
        cpu_ms=parse.number_or_none(body, "cpu_ms"),
        peak_memory_mib=parse.number_or_none(body, "peak_memory_mib"),
    )


def _end(body: Mapping[str, Any]) -> End:
    match body.get("kind"):
        case "exited":
            return Exited(parse.whole(body, "code", high=255))
        case "signaled":
            return Signaled(parse.whole(body, "signal", low=1, high=64))
        case "timed-out":
            return TimedOut(parse.number(body, "after_s"))
        case "out-of-memory":
            return OutOfMemory()
    raise ProtocolViolation("an exec ended in a way there is not")
