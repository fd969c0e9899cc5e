"""Run a notebook's cells in a sandbox, and write into it what they did."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from casemate import __version__
from casemate.errors import CasemateError
from casemate.integrations.jupyter.document import clear, describe, language_of, tags_of
from casemate.integrations.jupyter.outputs import Displays, Outputs, count_of
from casemate.sdk.code import CodeOutOfMemory, CodeTimedOut, Context, Execution, Raised, Result, SandboxDied

if TYPE_CHECKING:
    from casemate.sdk import Sandbox

SKIPS, MAY_RAISE = "skip-execution", "raises-exception"  # tags, as nbclient has them
FAILED, TIMED_OUT, OUT_OF_MEMORY = 1, 124, 137

T = TypeVar("T")
State = Literal["running", "ok", "failed", "allowed", "skipped", "not-run"]


@dataclass(frozen=True, slots=True)
class CellRun:
    """One code cell: the *number*-th of *total*, the *index*-th of all cells of the notebook.

    *state*: ``allowed`` where it failed and is tagged ``raises-exception``, ``skipped`` where a tag or its being empty
    kept it from running.
    """

    number: int
    total: int
    index: int
    cell_id: str
    state: State
    execution: Execution | None = None

    @property
    def exit_code(self) -> int:
        """0 where it is no reason to complain, else as for a command: 124 for a time-out, 137 when out of memory."""
        if self.state != "failed" or self.execution is None:
            return 0
        if isinstance(self.execution.end, CodeTimedOut):
            return TIMED_OUT
        return OUT_OF_MEMORY if isinstance(self.execution.end, CodeOutOfMemory) else FAILED


@dataclass(slots=True)
class NotebookRun:
    """How it went: *cells* has every code cell of the notebook, ``not-run`` those that were not come to."""

    cells: list[CellRun] = field(default_factory=list)
    duration_ms: float = 0.0

    @property
    def ok(self) -> bool:
        return all(cell.state in ("ok", "allowed", "skipped") for cell in self.cells)

    @property
    def failed(self) -> list[CellRun]:
        return [cell for cell in self.cells if cell.state == "failed"]


@dataclass(frozen=True, slots=True)
class Shows:
    """Who else is told of output and results as they come."""

    stdout: Callable[[bytes], object] | None = None
    stderr: Callable[[bytes], object] | None = None
    result: Callable[[Result], object] | None = None


def run_notebook(
    nb: Any,
    sandbox: Sandbox,
    *,
    language: str | None = None,
    context: Context | None = None,
    timeout_s: float | None = None,
    keep_going: bool = False,
    on_cell: Callable[[CellRun], object] | None = None,
    shows: Shows | None = None,
) -> NotebookRun:
    """Run the code cells of *nb*, a valid NotebookNode of nbformat 4.5, in order; their outputs replace those it had.

    In *context*, else in one of *language*, or of the notebook's own, that is made for it and removed afterwards. A
    cell that fails, or runs for longer than *timeout_s*, ends the run, unless *keep_going*. *on_cell* is told of each
    cell that begins and again when it has ended and *nb* holds its outputs; an answer of False ends the run.
    However it ends, also by an exception, *nb* is valid and holds all outputs so far.
    Raises NotSupported for a language, and what ``run_code`` raises.
    """
    own = context is None
    context = context or sandbox.contexts.create(language or language_of(nb))
    try:
        return _Runner(nb, sandbox, context, timeout_s, on_cell or (lambda cell: None), shows or Shows()).run(
            keep_going=keep_going
        )
    finally:
        if own:
            _remove(sandbox, context)


class _Runner:
    def __init__(
        self,
        nb: Any,
        sandbox: Sandbox,
        context: Context,
        timeout_s: float | None,
        tell: Callable[[CellRun], object],
        shows: Shows,
    ) -> None:
        self._nb, self._sandbox, self._context = nb, sandbox, context
        self._timeout_s = timeout_s
        self._tell = tell
        self._shows = shows
        self._displays = Displays()

    def run(self, *, keep_going: bool) -> NotebookRun:
        began = time.monotonic()
        clear(self._nb)
        describe(self._nb, self._context.language, self._context.version)
        self._nb["metadata"]["casemate"] = about = self._about()
        numbered = [(at, cell) for at, cell in enumerate(self._nb["cells"]) if cell["cell_type"] == "code"]
        done = NotebookRun()
        goes_on = True
        for number, (index, cell) in enumerate(numbered, 1):
            place = CellRun(number, len(numbered), index, str(cell["id"]), "not-run")
            ended = self._cell(cell, place) if goes_on else place
            goes_on = goes_on and ended.state != "not-run"
            done.cells.append(ended)
            done.duration_ms = round((time.monotonic() - began) * 1000, 1)
            about["duration_s"] = round(done.duration_ms / 1000, 3)
            if ended.state in ("not-run", "skipped"):
                continue
            goes_on = self._tell(ended) is not False and _may_go_on(ended, keep_going=keep_going)
        return done

    def _about(self) -> dict[str, Any]:
        info = self._sandbox.info
        before = self._nb["metadata"].get("casemate")
        kept = {"parameters": before["parameters"]} if isinstance(before, dict) and "parameters" in before else {}
        return {
            "version": __version__,
            "image": info.image,
            "isolation": info.isolation,
            "accelerator": info.accelerator,
            "started_at": _now(),
            "duration_s": 0.0,
            **kept,
        }

    def _cell(self, cell: Any, place: CellRun) -> CellRun:
        tags = tags_of(cell)
        if SKIPS in tags or not cell["source"].strip():
            return replace(place, state="skipped")
        if self._tell(replace(place, state="running")) is False:
            return place
        execution = self._executed(cell)
        state: State = "ok" if execution.ok else "failed"
        if MAY_RAISE in tags and isinstance(execution.end, Raised):
            state = "allowed"
        return replace(place, state=state, execution=execution)

    def _executed(self, cell: Any) -> Execution:
        """Whatever happens, the cell has what there is."""
        import nbformat

        outputs = Outputs(self._displays, node=nbformat.from_dict)
        times = cell["metadata"].setdefault("execution", {})
        times["iopub.status.busy"] = times["iopub.execute_input"] = _now()
        try:
            execution = self._sandbox.run_code(
                cell["source"],
                context=self._context,
                timeout_s=self._timeout_s,
                on_stdout=_both(outputs.stdout, self._shows.stdout),
                on_stderr=_both(outputs.stderr, self._shows.stderr),
                on_result=_both(outputs.result, self._shows.result),
            )
        except BaseException:
            cell["outputs"] = outputs.so_far()
            raise
        times["shell.execute_reply"] = times["iopub.status.idle"] = _now()
        cell["outputs"] = outputs.ended(execution)
        cell["execution_count"] = count_of(execution)
        return execution


def _may_go_on(cell: CellRun, *, keep_going: bool) -> bool:
    if cell.execution is None or isinstance(cell.execution.end, SandboxDied):
        return False
    return keep_going or cell.state != "failed"


def _both(first: Callable[[T], object], second: Callable[[T], object] | None) -> Callable[[T], object]:
    if second is None:
        return first

    def tell(value: T) -> None:
        first(value)
        second(value)

    return tell


def _remove(sandbox: Sandbox, context: Context) -> None:
    with suppress(CasemateError):  # it has gone with its sandbox, of which the last cell has told
        sandbox.contexts.remove(context)


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
