"""An agent with a warm Python in this process, and the host's end of its wire: real zygote, real contexts, no VM."""

from __future__ import annotations

import ctypes
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from casemate import wire
from casemate.guest.cgroups import Groups
from casemate.guest.contexts import Contexts
from casemate.guest.exec_table import ExecTable
from casemate.guest.handshake import Handshake
from casemate.guest.reactor import Reactor
from casemate.guest.reaper import Reaper
from casemate.guest.server import Server
from casemate.guest.spawner import Spawner
from casemate.guest.surroundings import Surroundings
from casemate.guest.zygote import Zygote
from casemate.sandbox import Introduction

RUNTIME = Path(__file__).parents[3] / "src" / "casemate" / "runtime"
PYTHON = str(Path(sys.base_prefix) / "bin" / "python3")
DEADLINE_S = 20.0
_PR_SET_CHILD_SUBREAPER = 36
_names = count(1)


class Machine:
    """A machine that changes nothing: the agent runs in this process."""

    def add_entropy(self, entropy: bytes) -> None: ...
    def set_clock(self, wall_clock_ns: int) -> None: ...
    def set_identity(self, hello: object, boot_id: str) -> None: ...


class Warm:
    """What has been prepared already."""

    def __init__(self, contexts: Contexts) -> None:
        self.contexts: Contexts | None = contexts

    def prepare(self, zygote: bool, done: Callable[[dict[str, Any]], None], failed: Callable[[str], None]) -> None:
        done({})

    def rehearse(self, done: Callable[[], None]) -> None:
        done()

    def restock(self, done: Callable[[], None]) -> None:
        done()


@dataclass
class Seen:
    """What the host has heard on one channel."""

    number: int
    accepted: dict[str, Any] | None = None
    denied: wire.Denied | None = None
    reset: wire.Reset | None = None
    said: list[Any] = field(default_factory=list)  # in order: messages, and (sub, bytes)
    end: dict[str, Any] | None = None
    closed: bool = False
    reading: bool = True  # gives credit back
    unread: list[int] = field(default_factory=list)

    @property
    def answered(self) -> bool:
        return self.accepted is not None or self.denied is not None

    @property
    def over(self) -> bool:
        return self.end is not None or self.denied is not None or self.reset is not None

    def stream(self, sub: int) -> bytes:
        return b"".join(said[1] for said in self.said if isinstance(said, tuple) and said[0] == sub)

    @property
    def stdout(self) -> str:
        return self.stream(1).decode()

    @property
    def stderr(self) -> str:
        return self.stream(2).decode()

    @property
    def results(self) -> list[dict[str, Any]]:
        """Each announced result, whole."""
        found, data, at = [], self.stream(3), 0
        for said in self.said:
            if isinstance(said, dict) and said.get("event") == "result":
                found.append(json.loads(data[at : at + said["size"]]))
                at += said["size"]
        assert at == len(data)
        return found

    @property
    def text(self) -> str | None:
        results = self.results
        return results[-1]["data"]["text/plain"] if results else None

    @property
    def kind(self) -> str:
        assert self.end is not None, (self.denied, self.reset)
        kind: str = self.end["end"]["kind"]
        return kind

    @property
    def order(self) -> list[Any]:
        """Output and results as they came: neighbours of one stream joined, results as their text."""
        found: list[Any] = []
        results = iter(self.results)
        for said in self.said:
            if isinstance(said, dict):
                if said["event"] == "result":
                    found.append(next(results)["data"]["text/plain"])
            elif said[0] != 3:
                sub, data = said
                if found and isinstance(found[-1], tuple) and found[-1][0] == sub:
                    found[-1] = (sub, found[-1][1] + data)
                else:
                    found.append((sub, data))
        return found


class CellGuest:
    def __init__(self, spares: int = 2) -> None:
        prctl = ctypes.CDLL(None).prctl
        assert prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0  # orphans come to this process, as to PID 1
        self.reactor = Reactor()
        self.reaper = Reaper(self.reactor, only_adopted=True)
        self.groups = Groups(self.reactor, None)
        self.spawner = Spawner(self.reactor, self.reaper, self.groups, spares=1)
        self.spawner.start()
        self.failures: list[str] = []
        self.zygote = Zygote(
            self.reactor, self.reaper, self.groups.new, python=PYTHON, runtime=str(RUNTIME), preload=("json",),
            spares=spares, refill_after_s=0.0,
        )  # fmt: skip
        ready: list[bool] = []
        self.zygote.start(lambda: ready.append(True), self.failures.append)
        self.contexts = Contexts(self.reactor, self.zygote)
        self.server = Server(
            self.reactor,
            self.groups,
            ExecTable(self.reactor, self.spawner),
            Surroundings(change_user=False),
            Handshake(Machine(), "0"),  # type: ignore[arg-type]
            Warm(self.contexts),
        )
        self.begin()
        self.until(lambda: bool(ready or self.failures))
        assert not self.failures

    def begin(self, introduction: Introduction | None = None) -> None:
        """A host that knows nothing of an earlier one."""
        self.host = wire.Connection(wire.Side.HOST, nonce=os.urandom(16))
        self.host.synchronise(reopened=True)
        self.host.hello((introduction or Introduction("guest", cwd="/tmp")).hello())
        self.channels: dict[int, Seen] = {}

    def turn(self, limit_s: float = 0.05) -> None:
        while chunk := self.host.outgoing():
            self.server.receive(chunk)
        self.reactor.turn(0 if self._carry() else limit_s)
        self._carry()

    def _carry(self) -> bool:
        """Whether the host has heard anything."""
        heard = False
        while chunk := self.server.connection.outgoing():
            heard = True
            for event in self.host.receive(chunk):
                self._hear(event)
        return heard

    def until(self, condition: Callable[[], object], limit_s: float = DEADLINE_S) -> None:
        deadline = time.monotonic() + limit_s
        while not condition():
            assert time.monotonic() < deadline, f"nothing happened: {list(self.channels.values())[-3:]}"
            self.turn()

    def let_pass(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self.turn(0.01)

    def open(self, kind: str, **params: Any) -> Seen:
        number = self.host.open(kind, params)
        seen = self.channels[number] = Seen(number)
        return seen

    def act(self, kind: str, **params: Any) -> Seen:
        """One that is answered at once or nearly so."""
        seen = self.open(kind, **params)
        self.until(lambda: seen.answered)
        return seen

    def begin_cell(self, code: str | bytes, *, stdin: bytes | None = None, reading: bool = True, **params: Any) -> Seen:
        """Open a run and send all of it."""
        params = {"cell_id": f"cell-{next(_names)}", "context": "default", "stdin": stdin is not None} | params
        seen = self.open("cell", op="run", **params)
        seen.reading = reading
        self.until(lambda: seen.answered)
        if seen.denied is None:
            self._send(seen, 1, code.encode() if isinstance(code, str) else code)
            if stdin is not None:
                self._send(seen, 2, stdin)
            self.host.finish(seen.number)
            self.turn(0)  # else the next one's opening would go first
        return seen

    def run(self, code: str | bytes, **params: Any) -> Seen:
        seen = self.begin_cell(code, **params)
        self.until(lambda: seen.over)
        return seen

    def join(self, cell_id: str, offset: int = 0) -> Seen:
        return self.act("cell", op="join", cell_id=cell_id, offset=offset)

    def read_on(self, seen: Seen) -> None:
        seen.reading = True
        while seen.unread:
            self.host.consumed(seen.number, seen.unread.pop())

    def _send(self, seen: Seen, sub: int, data: bytes) -> None:
        view = memoryview(data)
        deadline = time.monotonic() + DEADLINE_S
        while view and not seen.over:
            assert time.monotonic() < deadline
            view = view[self.host.send(seen.number, sub, view) :]
            self.turn(0)

    def _hear(self, event: wire.Event) -> None:
        seen = self.channels.get(getattr(event, "channel", 0))
        if seen is None:
            return
        match event:
            case wire.Accepted():
                seen.accepted = event.body
            case wire.Denied():
                seen.denied = event
            case wire.Reset():
                seen.reset = event
            case wire.Closed():
                seen.closed = True
            case wire.Data():
                assert seen.end is None, "output after the end"
                seen.said.append((event.sub, event.data))
                self._read(seen, event.size)
            case wire.Message():
                assert seen.end is None, "a message after the end"
                if event.body["event"] == "end":
                    seen.end = event.body
                else:
                    seen.said.append(event.body)
                self._read(seen, event.size)
            case _:
                pass

    def _read(self, seen: Seen, size: int) -> None:
        if seen.reading:
            self.host.consumed(seen.number, size)
        else:
            seen.unread.append(size)

    def close(self) -> None:
        self.contexts.stop()
        self.zygote.stop()
        self.let_pass(0.1)
        self.spawner.close()
        self.reaper.close()
        self.reactor.close()
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
