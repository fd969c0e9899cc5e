"""Code run in a context: an interpreter that is already there and keeps its names between cells.

A cell is a resource of the guest's, as an exec is: it may outlive its channel, and is joined again by its id. Its log
(stdout, stderr and results, in the order they came) is counted by one offset.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import cache
from itertools import islice
from typing import Any
from weakref import WeakKeyDictionary

import anyio
from anyio import to_thread

from casemate import wire
from casemate.errors import AgentSilent, GuestError, InvalidSpec, ProtocolViolation
from casemate.sandbox import bundles, parse
from casemate.sandbox.cell_ends import CellEnd, CellEnded, LeftOut, ended
from casemate.sandbox.channel import Channel
from casemate.sandbox.execs import STREAMS, Output
from casemate.sandbox.link import Link

MAX_BYTES = 16 * 2**20  # of code, and of its input
MAX_TIME_S = 30 * 86_400
START_TIMEOUT_S = 30.0
OVERDUE_S = 30.0  # how long after its time-out and grace a guest may keep the end of a cell to itself
GRACE_S = 2.0  # the agent's own, where none is asked for
AT_ONCE_BYTES = 65_536  # of code and input that go along with the opening of the channel
IDS = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
CODE, STDIN, RESULT = 1, 2, 3  # subs
LARGE_BYTES = 131_072  # of a result: from there on checking it would hold everybody up
LARGE_AT_ONCE = 2  # of one sandbox that are held, until their client has taken them
CHECKED_AT_ONCE = 2  # large ones, of all sandboxes: it takes a multiple of their memory
_LARGE: WeakKeyDictionary[Link, anyio.Semaphore] = WeakKeyDictionary()


@dataclass(frozen=True, slots=True)
class RunCell:
    """A checked wish. With *detach* the cell goes on when nobody follows it any more. Raises InvalidSpec.

    *timeout_s*: then it is interrupted, and its context killed when it has not ended *grace_s* later. *limits*: by the
    names of the runtime, what may be shown at most.
    """

    context: str = "default"
    timeout_s: float | None = None
    grace_s: float | None = None
    detach: bool = False
    stdin: bytes | None = None
    user: str | None = None
    limits: Mapping[str, int] = field(default_factory=dict)
    cell_id: str = field(default_factory=lambda: secrets.token_hex(8))

    def __post_init__(self) -> None:
        check_id("context", self.context)
        if self.timeout_s is not None and not 0 < self.timeout_s <= MAX_TIME_S:
            raise InvalidSpec(f"timeout_s is {self.timeout_s:g}; it must be over 0 and at most 30 days")
        if self.grace_s is not None and not 0 < self.grace_s <= 3600:
            raise InvalidSpec(f"grace_s is {self.grace_s:g}; it must be over 0 and at most 3600")
        if self.stdin is not None and len(self.stdin) > MAX_BYTES:
            raise InvalidSpec(f"stdin is over {MAX_BYTES} bytes", hint="write it to a file and open that")
        if self.user is not None and "\0" in self.user:
            raise InvalidSpec("user cannot hold a NUL character")

    def params(self) -> dict[str, Any]:
        return {
            "op": "run",
            "cell_id": self.cell_id,
            "context": self.context,
            "user": self.user,
            "timeout_s": self.timeout_s,
            "grace_s": self.grace_s,
            "detach": self.detach,
            "stdin": self.stdin is not None,
            "limits": dict(self.limits),
        }


@dataclass(frozen=True, slots=True)
class Queued:
    """It waits for *place* cells that wait before it in its context, and for the one that runs."""

    place: int


@dataclass(frozen=True, slots=True)
class Begun:
    execution_count: int


@dataclass(frozen=True, slots=True)
class Result:
    """*body*: a checked bundle, JSON in ASCII on one line; see ``bundles``."""

    offset: int
    body: bytes


@dataclass(frozen=True, slots=True)
class Refused:
    """A result that is left out, because what the context sent is none."""

    offset: int
    size_bytes: int
    reason: str


Item = Queued | Begun | Output | Result | Refused | CellEnded


class Cell:
    """A cell that somebody follows; read by one task. Not reading it stops its context when the pipes are full."""

    def __init__(self, channel: Channel, large: anyio.Semaphore, asked: int, limit_s: float | None = None) -> None:
        """*large*: who has it may hold a large result."""
        body = channel.accepted
        self._large, self._holds_large = large, False
        self.cell_id = parse.text(body, "cell_id", 64)
        self.context = parse.text(body, "context", 64)
        self.place = parse.whole(body, "place") if "place" in body else 0
        self.asked = asked
        self.offset = parse.whole(body, "offset", low=asked) if "offset" in body else asked
        self._channel = channel
        self._limit_s = limit_s
        self._overdue_at: float | None = None
        self._refused = LeftOut(0, 0)

    @property
    def is_ready(self) -> bool:
        """Whether ``read`` would return at once."""
        match list(islice(self._channel.arrived, 2)):
            case [wire.Message(body={"event": "result", "size": size}), wire.Data(data=data)]:
                return bool(size == len(data))
            case [wire.Message(body={"event": "result"}), *_]:
                return False
            case found:
                return bool(found)

    async def wait_ready(self) -> None:
        """Until something has come, if only its end. Safe to cancel."""
        await self._channel.wait_arrived()

    async def read(self) -> Item:
        """The next piece; the last one is CellEnded. Raises GuestError when it was cut off.

        Not to be cancelled in the middle of a result, if it is to be read on.
        """
        self.let_go()
        item = await self._receive()
        match item:
            case wire.Data(sub=1 | 2):
                offset = self.offset
                self.offset += len(item.data)
                return Output(STREAMS[item.sub], offset, item.data)
            case wire.Message(body={"event": "result"}):
                return await self._result(parse.whole(item.body, "size"))
            case wire.Message(body={"event": "begun"}):
                if self._limit_s is not None:
                    self._overdue_at = self._channel.clock() + self._limit_s + OVERDUE_S
                return Begun(parse.whole(item.body, "execution_count"))
            case wire.Message(body={"event": "queued"}):
                return Queued(parse.whole(item.body, "place"))
            case wire.Message(body={"event": "end"}):
                self._channel.finish()
                return ended(item.body, self._refused)
            case None:
                raise GuestError(f"the agent let go of cell {self.cell_id} before its end")
            case _:
                raise ProtocolViolation(f"cell {self.cell_id}: a message nobody sends")

    def let_go(self) -> None:
        """The last result is used up."""
        if self._holds_large:
            self._holds_large = False
            self._large.release()

    async def _result(self, size_bytes: int) -> Result | Refused:
        """Its bytes follow, and nothing else before they are whole."""
        if LARGE_BYTES < size_bytes <= bundles.MAX_BYTES:
            await self._large.acquire()
            self._holds_large = True
        offset, body, left = self.offset, bytearray(), size_bytes
        while left:
            piece = await self._receive()
            if not isinstance(piece, wire.Data) or piece.sub != RESULT or len(piece.data) > left:
                raise ProtocolViolation(f"cell {self.cell_id}: something else within a result")
            left -= len(piece.data)
            self.offset += len(piece.data)
            if size_bytes <= bundles.MAX_BYTES:
                body += piece.data
        try:
            if size_bytes > bundles.MAX_BYTES:
                raise bundles.BadBundle(f"over {bundles.MAX_BYTES} bytes")
            if size_bytes <= LARGE_BYTES:
                return Result(offset, bundles.checked(body))
            return Result(offset, await to_thread.run_sync(bundles.checked, body, limiter=_checking()))
        except bundles.BadBundle as reason:
            self._refused += LeftOut(1, size_bytes)
            return Refused(offset, size_bytes, str(reason))

    async def _receive(self) -> wire.Data | wire.Message | None:
        """The guest ends a cell at its time-out; we don't wait for ever for one that does not."""
        if self._overdue_at is None or self._channel.arrived:
            return await self._channel.receive()
        while (left_s := self._overdue_at - self._channel.clock()) > 0:  # the time of a suspended one does not pass
            with anyio.move_on_after(left_s):
                return await self._channel.receive()
        raise AgentSilent(f"cell {self.cell_id} should have ended {OVERDUE_S:g} s ago", hint="kill the sandbox")


@asynccontextmanager
async def run(link: Link, code: str, spec: RunCell) -> AsyncIterator[Cell]:
    """Run *code* as *spec* says. Leaving the block before its end interrupts it, then kills its context, unless detach.

    Raises InvalidSpec for code over 16 MiB, NotFound for a context, StateConflict when too many cells wait for it.
    """
    said = {CODE: encoded(code)}
    if spec.stdin:
        said[STDIN] = spec.stdin
    limit_s = None if spec.timeout_s is None else spec.timeout_s + (GRACE_S if spec.grace_s is None else spec.grace_s)
    at_once = said if sum(map(len, said.values())) <= AT_ONCE_BYTES else None
    async with link.open("cell", spec.params(), timeout_s=START_TIMEOUT_S, all_said=at_once) as channel:
        if at_once is None:
            await _sent(channel, said)
        with _let_go_of(Cell(channel, _large_of(link), 0, limit_s)) as cell:
            yield cell


async def _sent(channel: Channel, said: Mapping[int, bytes]) -> None:
    with anyio.move_on_after(START_TIMEOUT_S):
        for sub, data in said.items():
            await channel.send(data, sub)
        channel.finish()
        return
    raise AgentSilent(f"the agent did not take a cell's code within {START_TIMEOUT_S:g} s", hint="kill the sandbox")


@asynccontextmanager
async def join(link: Link, cell_id: str, offset: int = 0) -> AsyncIterator[Cell]:
    """Follow a cell from *offset* of its log, or from a later one where its beginning is lost. Leaving changes nothing.

    Raises NotFound, RequestError for an offset past the end.
    """
    async with link.open("cell", {"op": "join", "cell_id": cell_id, "offset": offset}) as channel:
        with _let_go_of(Cell(channel, _large_of(link), offset)) as cell:
            yield cell


async def interrupt(link: Link, cell_id: str) -> None:
    """As Ctrl-C does: its context goes on. Raises NotFound, StateConflict when it has ended."""
    async with link.open("cell", {"op": "interrupt", "cell_id": cell_id}) as channel:
        channel.finish()


@dataclass(frozen=True, slots=True)
class CellInfo:
    cell_id: str
    context: str
    state: str
    place: int | None
    end: CellEnd | None
    duration_ms: float
    offset: int

    @classmethod
    def from_agent(cls, body: Mapping[str, Any]) -> CellInfo:
        """Raises ProtocolViolation."""
        state = parse.one_of(body, "state", ("queued", "running", "ended"))
        return cls(
            parse.text(body, "cell_id", 64),
            parse.text(body, "context", 64),
            state,
            parse.whole(body, "place") if state == "queued" else None,
            CellEnd.from_agent(parse.mapping(body, "end")) if state == "ended" else None,
            parse.number(body, "duration_ms"),
            parse.whole(body, "offset"),
        )

    def to_json(self) -> dict[str, Any]:
        said = {name: getattr(self, name) for name in self.__slots__}
        return said | {"end": self.end.to_json() if self.end is not None else None}


async def listed(link: Link) -> list[CellInfo]:
    """Those that wait, run, or have ended and are still held."""
    async with link.open("cell", {"op": "list"}) as channel:
        channel.finish()
        return [CellInfo.from_agent(body) for body in parse.objects(channel.accepted, "cells")]


def _large_of(link: Link) -> anyio.Semaphore:
    """Whoever begins many large results and ends none is in his own way only."""
    if link not in _LARGE:
        _LARGE[link] = anyio.Semaphore(LARGE_AT_ONCE)
    return _LARGE[link]


@contextmanager
def _let_go_of(cell: Cell) -> Iterator[Cell]:
    try:
        yield cell
    finally:
        cell.let_go()


@cache
def _checking() -> anyio.CapacityLimiter:
    return anyio.CapacityLimiter(CHECKED_AT_ONCE)


def check_id(what: str, given: str) -> None:
    """Raises InvalidSpec for what no cell and no context is called."""
    if not IDS.fullmatch(given):
        raise InvalidSpec(f"{given[:80]!r} is not the id of a {what}")


def encoded(text: str, what: str = "code") -> bytes:
    """Raises InvalidSpec."""
    try:
        data = text.encode()
    except UnicodeEncodeError as error:
        raise InvalidSpec(f"{what} has half of a surrogate pair in it, which is no text") from error
    if len(data) > MAX_BYTES:
        raise InvalidSpec(f"{what} is over {MAX_BYTES} bytes", hint="write it to a file of the sandbox's and use that")
    return data
