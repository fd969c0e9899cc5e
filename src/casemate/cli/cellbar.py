"""How a notebook's cells go, on stderr: a bar on a terminal, with a line for each that failed; elsewhere lines."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from casemate.cli.progress import rich_bars
from casemate.cli.prompt.harmless import harmless

if TYPE_CHECKING:
    from casemate.integrations.jupyter.notebook import CellRun

SAID_CHARS = 200  # of an error's text
STATES = {"allowed": "failed, as its tag allows"}


@contextmanager
def told(*, quiet: bool, as_lines: bool) -> Iterator[Callable[[CellRun], None]]:
    """Who is to be told of cells; *as_lines* also on a terminal, where something else is shown there."""
    if quiet:
        yield lambda cell: None
        return
    if as_lines or not sys.stderr.isatty():
        yield _line
        return
    with rich_bars(stderr=True, transient=True) as bars:
        bar = bars.add("cells")

        def tell(cell: CellRun) -> None:
            done = cell.number - (cell.state == "running")
            bar.tell(f"{cell.number}/{cell.total}", done / cell.total)
            if cell.state in ("failed", "allowed"):
                _line(cell)

        yield tell


def _line(cell: CellRun) -> None:
    if cell.execution is None:
        return
    seconds = cell.execution.duration_ms / 1000
    print(f"cell {cell.number}/{cell.total}: {seconds:.1f} s, {_how(cell)}", file=sys.stderr, flush=True)


def _how(cell: CellRun) -> str:
    state = STATES.get(cell.state, cell.state)
    error = cell.execution.error if cell.execution is not None else None
    if error is None:
        return state
    text = " ".join(harmless(f"{error.name}: {error.value}" if error.value else error.name).split())
    return f"{state}: {text if len(text) <= SAID_CHARS else text[: SAID_CHARS - 1] + '…'}"
