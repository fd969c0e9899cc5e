# Generated from _async/code.py by tools/generate_sync.py; change that and run it.
"""Run code in a sandbox: cells, and the contexts that they run in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from casemate.errors import CasemateError, InvalidSpec
from casemate.sdk._sync.beside import called
from casemate.sdk._sync.client import Client
from casemate.sdk.alive import repeating
from casemate.sdk.code import Completion, Context, Execution, Inspection, Result
from casemate.sdk.gathering import Gathered
from casemate.sdk.streams import MAX_OUTPUT_BYTES

Sink = Callable[[bytes], object]
Shower = Callable[[Result], object]
START_S = 180.0  # how long a context may take to begin: a kernel, or a sandbox that has to be resumed first
ALIVE_S = 0.5
CALLER_TIMEOUT_S = 1.5  # with the look of the daemon, within 2 s


@dataclass(frozen=True, slots=True)
class Sinks:
    """Who is told of a cell's output and results as they come; coroutine functions are awaited."""

    stdout: Sink | None = None
    stderr: Sink | None = None
    result: Shower | None = None
    max_output_bytes: int = MAX_OUTPUT_BYTES


class CodeCell:
    """A detached cell: it goes on whether or not somebody follows it."""

    def __init__(self, code: Code, cell_id: str, context: str) -> None:
        self.cell_id, self.context = cell_id, context
        self._code = code

    def join(
        self,
        offset: int = 0,
        *,
        on_stdout: Sink | None = None,
        on_stderr: Sink | None = None,
        on_result: Shower | None = None,
        max_output_bytes: int = MAX_OUTPUT_BYTES,
    ) -> Execution:
        """All that it says from *offset* of its log on, or from where what is still held begins, and its end."""
        return self._code.join(self.cell_id, offset, Sinks(on_stdout, on_stderr, on_result, max_output_bytes))

    def interrupt(self) -> None:
        """As Ctrl-C does. Raises StateConflict when it has ended."""
        self._code.interrupt(self.cell_id)


class Code:
    def __init__(self, client: Client, path: str) -> None:
        self._client = client
        self._path = path

    def run(self, body: Mapping[str, Any], sinks: Sinks) -> Execution:
        over_tcp = self._client.target.socket is None  # on a unix socket the kernel says whether we stand still
        said = {**body, "caller_timeout_s": CALLER_TIMEOUT_S} if over_tcp else body
        with self._client.lines("POST", f"{self._path}/code", body=said) as events:
            gathered = Gathered(next(events), sinks.max_output_bytes)
            if not over_tcp:
                return _gather(events, gathered, sinks)
            with repeating(ALIVE_S, partial(self._say_alive, gathered.cell_id)):
                return _gather(events, gathered, sinks)
        raise AssertionError("unreachable")

    def detach(self, body: Mapping[str, Any]) -> CodeCell:
        with self._client.lines("POST", f"{self._path}/code", body={**body, "detach": True}) as events:
            first = next(events)
            return CodeCell(self, str(first["cell_id"]), str(first["context"]))
        raise AssertionError("unreachable")

    def join(self, cell_id: str, offset: int, sinks: Sinks) -> Execution:
        path = f"{self._path}/cells/{cell_id}"
        with self._client.lines("GET", path, params={"offset": str(offset)}) as events:
            return _gather(events, Gathered(next(events), sinks.max_output_bytes), sinks)
        raise AssertionError("unreachable")

    def interrupt(self, cell_id: str) -> None:
        self._client.call("DELETE", f"{self._path}/cells/{cell_id}")

    def _say_alive(self, cell_id: str) -> None:
        with suppress(CasemateError):  # whoever follows the cell hears of a daemon that is gone
            self._client.apart.call("POST", f"{self._path}/cells/{cell_id}/alive", body={})


class Contexts:
    """A sandbox's interpreters. ``default`` is there from its first cell on."""

    def __init__(self, client: Client, path: str) -> None:
        self._client = client
        self._path = f"{path}/contexts"
        self._by_language = {"python": "default"}

    def create(
        self,
        language: str = "python",
        *,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        user: str | None = None,
    ) -> Context:
        """Another interpreter, ready: python, bash; where the image has them javascript and jupyter:KERNEL.

        Raises NotSupported for a language that is not there, ExecRefused for a *cwd* that is not.
        """
        body = {"language": language, "cwd": cwd, "env": dict(env or {}), "user": user}
        return Context.from_json(self._client.call("POST", self._path, body=body, answer_s=START_S))

    def list(self) -> list[Context]:
        found = self._client.call("GET", self._path)
        return [Context.from_json(body) for body in found["contexts"]]

    def restart(self, context: Context | str) -> Context:
        """Begin it anew, without its names; what runs or waits in it ends."""
        found = self._client.call("POST", f"{self._of(context)}/restart", body={}, answer_s=START_S)
        return Context.from_json(found)

    def interrupt(self, context: Context | str) -> None:
        """What runs in it, as Ctrl-C does; nothing happens where nothing runs."""
        self._client.call("POST", f"{self._of(context)}/interrupt", body={})

    def remove(self, context: Context | str) -> None:
        self._by_language = {name: kept for name, kept in self._by_language.items() if kept != id_of(context)}
        self._client.call("DELETE", self._of(context))

    def complete(self, code: str, cursor: int | None = None, context: Context | str = "default") -> Completion:
        """What the name before *cursor*, or at the end, could become. Raises StateConflict while it is busy."""
        body = {"code": code, "cursor": len(code) if cursor is None else cursor}
        found = self._client.call("POST", f"{self._of(context)}/complete", body=body)
        return Completion(tuple(found["matches"]), int(found["start"]), int(found["end"]))

    def inspect(
        self, code: str, cursor: int | None = None, context: Context | str = "default", detail: int = 0
    ) -> Inspection:
        """What the name at *cursor*, or at the end, is; *detail* 1: with its source. Raises StateConflict while the
        context is busy, NotSupported where the sandbox's agent is too old.
        """
        body = {"code": code, "cursor": len(code) if cursor is None else cursor, "detail": detail}
        return Inspection.from_json(self._client.call("POST", f"{self._of(context)}/inspect", body=body))

    def of_language(self, language: str) -> str:
        """The id of the context that is kept for *language*, made by the first who asks; of Python the default one."""
        known = self._by_language.get(language)
        if known is None:
            made = (self.create(language)).context_id
            known = self._by_language.setdefault(language, made)
            if known != made:  # somebody was faster
                self.remove(made)
        return known

    def _of(self, context: Context | str) -> str:
        return f"{self._path}/{id_of(context)}"


def id_of(context: Context | str) -> str:
    return context.context_id if isinstance(context, Context) else context


def text_of(stdin: str | bytes | None) -> str | None:
    """Raises InvalidSpec for bytes that are not UTF-8."""
    try:
        return stdin.decode() if isinstance(stdin, bytes) else stdin
    except UnicodeDecodeError as error:
        raise InvalidSpec("stdin is not UTF-8", hint="write it to a file of the sandbox's and open that") from error


def _gather(events: Iterator[dict[str, Any]], gathered: Gathered, sinks: Sinks) -> Execution:
    execution: Execution | None = None
    for event in events:
        match event["event"]:
            case "stdout":
                data = gathered.output(event)
                if sinks.stdout is not None:
                    called(sinks.stdout, data)
            case "stderr":
                data = gathered.output(event)
                if sinks.stderr is not None:
                    called(sinks.stderr, data)
            case "result":
                result = gathered.result(event)
                if sinks.result is not None:
                    called(sinks.result, result)
            case "gap":
                gathered.gap(event)
            case "end":
                execution = gathered.ended(event)
    if execution is None:
        raise AssertionError("a stream of events ends with one or raises")
    return execution
