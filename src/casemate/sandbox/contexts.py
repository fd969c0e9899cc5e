"""Contexts of a guest: processes that keep their names between cells, each of one language."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any, Self

import anyio

from casemate import wire
from casemate.errors import InvalidSpec, NotFound, NotSupported, StateConflict
from casemate.sandbox import bundles, parse
from casemate.sandbox.cells import RunCell, check_id, encoded
from casemate.sandbox.execs import MAX_PARAMS_BYTES
from casemate.sandbox.link import Link

START_TIMEOUT_S = 120.0  # a kernel, or Node, on an overloaded emulated guest
COMPLETE_S = 5.0
COMPLETE_GRACE_S = 60.0  # nobody wants to lose variables by a key: this bounds it, and kills what hangs for good
MAX_MATCHES = 10_000
MAX_INSPECTED = 40_000  # characters of each type
STATES = ("starting", "idle", "busy", "dead")


@dataclass(frozen=True, slots=True)
class ContextSpec:
    """A checked wish; *language* is python, bash, javascript or jupyter:KERNEL. Raises InvalidSpec."""

    language: str = "python"
    cwd: str | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    user: str | None = None
    context_id: str = field(default_factory=lambda: secrets.token_hex(8))

    def __post_init__(self) -> None:
        texts = (self.language, self.cwd, self.user, *self.env, *self.env.values())
        if any("\0" in text for text in texts if text is not None):
            raise InvalidSpec("language, cwd, user and env cannot hold a NUL character")
        if any(not name or "=" in name for name in self.env):
            raise InvalidSpec("env: a name is empty or has a '=' in it")
        if not self.language or len(self.language) > 200:
            raise InvalidSpec("language is a short text", hint="python, bash, javascript or jupyter:KERNEL")
        if len(json.dumps(self.params()).encode()) > MAX_PARAMS_BYTES:
            raise InvalidSpec(f"env takes more than {MAX_PARAMS_BYTES} bytes", hint="write a file")

    def params(self) -> dict[str, Any]:
        return {
            "op": "create",
            "context_id": self.context_id,
            "language": self.language,
            "cwd": self.cwd,
            "env": dict(self.env),
            "user": self.user,
        }


@dataclass(frozen=True, slots=True)
class ContextInfo:
    """As the agent says it is; *pid* is the guest's, None where no process of it is alive."""

    context_id: str
    language: str
    version: str | None
    cwd: str | None
    state: str
    queued: int
    execution_count: int
    pid: int | None

    @classmethod
    def from_agent(cls, body: Mapping[str, Any]) -> Self:
        """Raises ProtocolViolation."""
        return cls(
            parse.text(body, "context_id", 64),
            parse.text(body, "language", 256),
            parse.text_or_none(body, "version", 256),
            parse.text_or_none(body, "cwd", 4096),
            parse.one_of(body, "state", STATES),
            parse.whole(body, "queued"),
            parse.whole(body, "execution_count"),
            None if body.get("pid") is None else parse.whole(body, "pid"),
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


async def create(link: Link, spec: ContextSpec) -> ContextInfo:
    """It is ready when this returns. Raises NotSupported for a language that is not there, ExecRefused for its cwd."""
    return await _about(link, spec.params())


async def restart(link: Link, context_id: str) -> ContextInfo:
    """End its process, and the cells that run or wait, and begin a new one. Raises NotFound."""
    return await _about(link, {"op": "restart", "context_id": context_id})


async def interrupt(link: Link, context_id: str) -> None:
    """The cell that runs, as Ctrl-C does; nothing happens where none runs. Raises NotFound."""
    await _done(link, {"op": "interrupt", "context_id": context_id})


async def remove(link: Link, context_id: str) -> None:
    """End it for good. Raises NotFound."""
    await _done(link, {"op": "remove", "context_id": context_id})


async def listed(link: Link) -> list[ContextInfo]:
    async with link.open("context", {"op": "list"}) as channel:
        channel.finish()
        return [ContextInfo.from_agent(body) for body in parse.objects(channel.accepted, "contexts")]


async def find(link: Link, context_id: str) -> ContextInfo:
    """Raises NotFound."""
    for info in await listed(link):
        if info.context_id == context_id:
            return info
    raise NotFound(f"there is no context {context_id!r}", hint="list the sandbox's contexts")


@dataclass(frozen=True, slots=True)
class Completion:
    """What could stand instead of the code from *start* to *end*, counted in characters."""

    matches: tuple[str, ...]
    start: int
    end: int


async def complete(link: Link, context_id: str, code: str, cursor: int) -> Completion:
    """What the name before *cursor* could become. Raises NotFound, StateConflict for a context that is busy."""
    return _completion(await _asked(link, context_id, code, {"act": "complete", "cursor": cursor}), len(code))


@dataclass(frozen=True, slots=True)
class Inspection:
    """What a name in a piece of code is: a text for each MIME type."""

    found: bool
    data: Mapping[str, str]


async def inspect(link: Link, context_id: str, code: str, cursor: int, detail: int = 0) -> Inspection:
    """What the name at *cursor* is, with *detail* 1 also its source. Raises as `complete`, and NotSupported where the
    sandbox's agent is too old to know this.
    """
    if detail not in (0, 1):
        raise InvalidSpec(f"detail is {detail}; it is 0 or 1")
    asks = {"act": "inspect", "cursor": cursor, "detail": detail}
    try:
        return _inspection(await _asked(link, context_id, code, asks))
    except InvalidSpec as error:
        if "no act" not in str(error):
            raise
        raise NotSupported("the agent of this sandbox cannot inspect", hint="create it anew") from error


async def _asked(link: Link, context_id: str, code: str, asks: Mapping[str, Any]) -> bytearray:
    """The context's answer, unread."""
    if not 0 <= asks["cursor"] <= len(code):
        raise InvalidSpec(f"cursor is {asks['cursor']}; it must be from 0 to the length of the code")
    spec = RunCell(context_id, timeout_s=COMPLETE_S, grace_s=COMPLETE_GRACE_S)
    params = {**spec.params(), **asks}
    with anyio.move_on_after(COMPLETE_S):
        async with link.open("cell", params, timeout_s=COMPLETE_S, all_said={1: _short(code)}) as channel:
            body = bytearray()
            while (item := await channel.receive()) is not None:
                if isinstance(item, wire.Data) and item.sub == 3 and len(body) + len(item.data) <= wire.WINDOW:
                    body += item.data
                elif isinstance(item, wire.Message) and item.body.get("event") == "end":
                    return body
    raise StateConflict(f"context {context_id} did not answer within {COMPLETE_S:g} s", hint="it is busy: try again")


def _completion(body: bytearray, length: int) -> Completion:
    """Nothing where the context answers nonsense, as its user's code can make it do."""
    nothing = Completion((), length, length)
    try:
        found = bundles.load(body)
    except bundles.BadBundle:
        return nothing
    matches, start, end = found.get("matches"), found.get("start"), found.get("end")
    if not isinstance(matches, list) or not all(isinstance(match, str) for match in matches):
        return nothing
    if type(start) is not int or type(end) is not int or not 0 <= start <= end <= length:
        return nothing
    return Completion(tuple(matches[:MAX_MATCHES]), start, end)


def _inspection(body: bytearray) -> Inspection:
    nothing = Inspection(False, {})
    try:
        found = bundles.load(body)
    except bundles.BadBundle:
        return nothing
    data = found.get("data")
    if found.get("found") is not True or not isinstance(data, dict):
        return nothing
    texts = {mime: text for mime, text in data.items() if bundles.is_type(mime) and isinstance(text, str)}
    shown = {mime: text[:MAX_INSPECTED] for mime, text in islice(texts.items(), bundles.MAX_TYPES)}
    return Inspection(bool(shown), shown)


def _short(code: str) -> bytes:
    text = encoded(code)
    if len(text) > MAX_PARAMS_BYTES:
        raise InvalidSpec(f"code is over {MAX_PARAMS_BYTES} bytes", hint="send the lines around the cursor")
    return text


async def _about(link: Link, params: Mapping[str, Any]) -> ContextInfo:
    check_id("context", params["context_id"])
    async with link.open("context", params, timeout_s=START_TIMEOUT_S) as channel:
        channel.finish()
        return ContextInfo.from_agent(parse.mapping(channel.accepted, "context"))


async def _done(link: Link, params: Mapping[str, Any]) -> None:
    check_id("context", params["context_id"])
    async with link.open("context", params) as channel:
        channel.finish()
