"""What code that was run gives back: results, logs, its end; and the contexts it runs in."""

from __future__ import annotations

import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, assert_never

from casemate.errors import CasemateError
from casemate.sdk.charts import CHART, Chart, chart_of
from casemate.sdk.results import Logs

TABLE = "application/vnd.casemate.table+json"
CLEAR = "application/vnd.casemate.clear+json"
PLOTLY = "application/vnd.plotly.v1+json"
VEGALITE = ("application/vnd.vegalite.v6+json", "application/vnd.vegalite.v5+json")


@dataclass(frozen=True, slots=True)
class Ok:
    """The code ran to its end."""


@dataclass(frozen=True, slots=True)
class Raised:
    """The code raised: the exception's class, its text, and the traceback as its language prints it."""

    name: str
    value: str
    traceback: str


@dataclass(frozen=True, slots=True)
class Interrupted:
    """It was interrupted. *state_kept*: its context goes on with its names; else a fresh one takes the next cell."""

    state_kept: bool


@dataclass(frozen=True, slots=True)
class CodeTimedOut:
    """It ran longer than its time-out. *state_kept* as for Interrupted."""

    after_s: float
    state_kept: bool


@dataclass(frozen=True, slots=True)
class CodeOutOfMemory:
    """Its context took more memory than there was and ended; other contexts go on."""


@dataclass(frozen=True, slots=True)
class ContextDied:
    """Its interpreter ended; the next cell of the context gets a fresh one."""

    reason: str


@dataclass(frozen=True, slots=True)
class SandboxDied:
    """The whole sandbox ended under it: *code* as its ``state_reason`` has it."""

    code: str
    message: str


CodeEnd = Ok | Raised | Interrupted | CodeTimedOut | CodeOutOfMemory | ContextDied | SandboxDied


@dataclass(frozen=True, slots=True)
class ExecutionError:
    """Why code did not run to its end: the exception's class, its text, and the traceback.

    Where it did not raise the traceback is empty and the name TimedOut, Interrupted, OutOfMemory, ContextDied or
    SandboxDied.
    """

    name: str
    value: str
    traceback: str


@dataclass(frozen=True, slots=True)
class Column:
    name: str
    type: str


@dataclass(frozen=True, slots=True)
class Table:
    """A table as data. *shape* is the true one; there may be fewer rows and columns here."""

    columns: tuple[Column, ...]
    rows: Sequence[Sequence[Any]]
    shape: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Result:
    """One thing that was shown, in as many MIME types as it has.

    *type* is ``result`` for the value of the last expression, else ``display``. *update*: it takes the place of the
    displays with the same *display_id*. *cut*: of types that were cut or left out, how many bytes they had.
    """

    type: str
    data: Mapping[str, Any] = field(repr=False)
    metadata: Mapping[str, Any] = field(repr=False)
    display_id: str | None
    update: bool
    cut: Mapping[str, int]

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Result:
        return cls(
            str(body.get("type")),
            body.get("data") or {},
            body.get("metadata") or {},
            body.get("display_id"),
            bool(body.get("update")),
            body.get("cut") or {},
        )

    def _text(self, mime: str) -> str | None:
        found = self.data.get(mime)
        return found if isinstance(found, str) else None

    def _bytes(self, mime: str) -> bytes | None:
        found = self._text(mime)
        try:
            return None if found is None else binascii.a2b_base64(found)
        except ValueError:
            return None

    @property
    def text(self) -> str | None:
        return self._text("text/plain")

    @property
    def html(self) -> str | None:
        return self._text("text/html")

    @property
    def markdown(self) -> str | None:
        return self._text("text/markdown")

    @property
    def svg(self) -> str | None:
        return self._text("image/svg+xml")

    @property
    def latex(self) -> str | None:
        return self._text("text/latex")

    @property
    def javascript(self) -> str | None:
        return self._text("application/javascript")

    @property
    def png(self) -> bytes | None:
        return self._bytes("image/png")

    @property
    def jpeg(self) -> bytes | None:
        return self._bytes("image/jpeg")

    @property
    def pdf(self) -> bytes | None:
        return self._bytes("application/pdf")

    @property
    def json(self) -> Any:
        """Any JSON value; None also where there is none."""
        return self.data.get("application/json")

    @property
    def clears(self) -> Literal["now", "next"] | None:
        """Whether it shows nothing and takes away what its cell has shown: at once, or when the next is there."""
        if CLEAR not in self.data:
            return None
        body = self.data[CLEAR]
        return "next" if isinstance(body, dict) and body.get("wait") is True else "now"

    @property
    def chart(self) -> Chart | None:
        """A figure of matplotlib as data. None for kinds that are not told, and where the code has made up another."""
        return chart_of(self.data.get(CHART))

    @property
    def plotly(self) -> Any:
        """A figure of plotly's as its own JSON, ``data`` and ``layout``; None also where there is none."""
        return self.data.get(PLOTLY)

    @property
    def vegalite(self) -> Any:
        """The specification of a chart of altair's; None also where there is none."""
        return next((self.data[mime] for mime in VEGALITE if mime in self.data), None)

    @property
    def table(self) -> Table | None:
        """A data frame's rows and columns. None also where the code has made up something else."""
        try:
            body = self.data[TABLE]
            columns = tuple(Column(str(column["name"]), str(column["type"])) for column in body["columns"])
            rows, columns_in_all = body["shape"]
            if not all(isinstance(row, list) for row in body["rows"]):
                return None
            return Table(columns, body["rows"], (int(rows), int(columns_in_all)))
        except (KeyError, TypeError, ValueError):
            return None


@dataclass(frozen=True, slots=True)
class FileChange:
    """*change* is created, modified or deleted."""

    path: str
    change: str


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Results that a limit kept back, or that were none."""

    results: int = 0
    result_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Execution:
    """Code that was run. Code that failed is a result: look at ``end``, or at ``error`` for the same in short.

    *results* in order, *logs* the output beside them; ``truncated_bytes`` says how much of both was not kept here.
    *files_changed* below the context's folder, and *files_cut* how many more (-1: not known). *offset*: how long the
    cell's log was at its end.
    """

    results: tuple[Result, ...]
    logs: Logs
    error: ExecutionError | None
    end: CodeEnd
    execution_count: int | None
    duration_ms: float
    files_changed: tuple[FileChange, ...]
    cell_id: str
    context: str
    truncated_bytes: int
    offset: int
    files_cut: int = 0
    left_out: LeftOut = LeftOut()

    @property
    def ok(self) -> bool:
        return isinstance(self.end, Ok)

    @property
    def text(self) -> str | None:
        """The value of the last expression as text; None where there was none."""
        return next((result.text for result in reversed(self.results) if result.type == "result"), None)


@dataclass(frozen=True, slots=True)
class Context:
    """An interpreter with names of its own, as it was when it was asked about. *pid* is in the guest."""

    context_id: str
    language: str
    version: str | None
    cwd: str | None
    state: str
    queued: int
    execution_count: int
    pid: int | None

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Context:
        names = [f.name for f in fields(cls)]
        if missing := [name for name in names if name not in body]:
            raise CasemateError(f"the daemon's answer has no {missing[0]!r}", hint="is CASEMATE_URL a Casemate daemon?")
        return cls(**{name: body[name] for name in names})


@dataclass(frozen=True, slots=True)
class Completion:
    """What could stand instead of the code from *start* to *end*, counted in characters."""

    matches: tuple[str, ...]
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Inspection:
    """What a name is: a text for each MIME type, none where it was not *found*."""

    found: bool
    data: Mapping[str, str]

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Inspection:
        data = {mime: text for mime, text in dict(body["data"]).items() if isinstance(text, str)}
        return cls(bool(body["found"]) and bool(data), data)


def end_from_json(body: Mapping[str, Any]) -> CodeEnd:  # noqa: PLR0911 - one for each
    match body.get("kind"):
        case "ok":
            return Ok()
        case "error":
            return Raised(str(body["name"]), str(body["value"]), str(body["traceback"]))
        case "interrupted":
            return Interrupted(bool(body["state_kept"]))
        case "timed-out":
            return CodeTimedOut(float(body["after_s"]), bool(body["state_kept"]))
        case "out-of-memory":
            return CodeOutOfMemory()
        case "context-died":
            return ContextDied(str(body["reason"]))
        case "sandbox-died":
            return SandboxDied(str(body["reason"]["code"]), str(body["reason"]["message"]))
    raise CasemateError(f"the daemon says a cell ended in a way this version does not know: {body}")


def error_of(end: CodeEnd) -> ExecutionError | None:  # noqa: PLR0911 - one for each
    match end:
        case Ok():
            return None
        case Raised(name, value, traceback):
            return ExecutionError(name, value, traceback)
        case Interrupted(kept):
            return ExecutionError("Interrupted", _state(kept), "")
        case CodeTimedOut(after_s, kept):
            return ExecutionError("TimedOut", f"after {after_s:g} s; {_state(kept)}", "")
        case CodeOutOfMemory():
            return ExecutionError("OutOfMemory", "its context took too much memory and was ended", "")
        case ContextDied(reason):
            return ExecutionError("ContextDied", reason, "")
        case SandboxDied(_, message):
            return ExecutionError("SandboxDied", message, "")
        case _:
            assert_never(end)


def _state(kept: bool) -> str:
    return "its context goes on" if kept else "its context was ended, and its names are lost"
