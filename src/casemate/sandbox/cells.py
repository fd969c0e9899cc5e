"""Code run in a context: the interpreter that is already there and keeps its names between cells."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Any

import anyio

from casemate import wire
from casemate.errors import GuestError, InvalidSpec, ProtocolViolation
from casemate.sandbox import parse
from casemate.sandbox.channel import Channel
from casemate.sandbox.execs import STREAMS, Output, Stream
from casemate.sandbox.link import Link

MAX_CODE_BYTES = 16 * 2**20
START_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class CellOk:
    kind: str = "ok"


@dataclass(frozen=True, slots=True)
class CellError:
    """The code raised: the exception's class, its text, and the traceback as Python prints it."""

    name: str
    value: str
    traceback: str
    kind: str = "error"


@dataclass(frozen=True, slots=True)
class CellTimedOut:
    after_s: float
    kind: str = "timed-out"


@dataclass(frozen=True, slots=True)
class CellDied:
    """The interpreter itself ended; the next cell gets a fresh one."""

    reason: str
    kind: str = "died"


CellEnd = CellOk | CellError | CellTimedOut | CellDied


@dataclass(frozen=True, slots=True)
class CellEnded:
    """*text* is the repr of the last expression, None where there was none."""

    end: CellEnd
    text: str | None
    duration_ms: float

    def to_json(self) -> dict[str, Any]:
        return {"end": asdict(self.end), "text": self.text, "duration_ms": self.duration_ms}


class Cell:
    """A cell under way; read by one task."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._offsets: dict[Stream, int] = {"stdout": 0, "stderr": 0}

    async def read(self) -> Output | CellEnded:
        """The next piece; the last one is CellEnded. Raises GuestError when it was cut off."""
        item = await self._channel.receive()
        match item:
            case wire.Data(sub=1 | 2):
                stream = STREAMS[item.sub]
                offset = self._offsets[stream]
                self._offsets[stream] += len(item.data)
                return Output(stream, offset, item.data)
            case wire.Message(body={"event": "end"}):
                return _ended(item.body)
            case None:
                raise GuestError("the agent let go of a cell before its end")
            case _:
                raise ProtocolViolation("cell: a message nobody sends")


@asynccontextmanager
async def run(
    link: Link,
    code: str,
    *,
    timeout_s: float | None = None,
    context: str = "default",
    user: str | None = None,
) -> AsyncIterator[Cell]:
    """Run *code* in *context*. Leaving the block before its end interrupts it by ending its interpreter.

    Raises InvalidSpec for code over 16 MiB, NotSupported for another context than ``default``.
    """
    text = code.encode()
    if len(text) > MAX_CODE_BYTES:
        raise InvalidSpec(f"code is over {MAX_CODE_BYTES} bytes", hint="write it to a file and run that")
    if timeout_s is not None and not 0 < timeout_s <= 30 * 86_400:
        raise InvalidSpec(f"timeout_s is {timeout_s:g}; it must be over 0 and at most 30 days")
    params: Mapping[str, Any] = {"timeout_s": timeout_s, "context": context, "user": user}
    async with link.open("cell", params, timeout_s=START_TIMEOUT_S) as channel:
        with anyio.fail_after(START_TIMEOUT_S):
            await channel.send(text)
        channel.finish()
        yield Cell(channel)


def _ended(body: Mapping[str, Any]) -> CellEnded:
    return CellEnded(
        _end(parse.mapping(body, "end")), parse.text_or_none(body, "text"), parse.number(body, "duration_ms")
    )


def _end(body: Mapping[str, Any]) -> CellEnd:
    match body.get("kind"):
        case "ok":
            return CellOk()
        case "error":
            return CellError(parse.text(body, "name"), parse.text(body, "value"), parse.text(body, "traceback"))
        case "timed-out":
            return CellTimedOut(parse.number(body, "after_s"))
        case "died":
            return CellDied(parse.text(body, "reason"))
    raise ProtocolViolation("a cell ended in a way there is not")
