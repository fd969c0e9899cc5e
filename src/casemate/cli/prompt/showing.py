"""What a cell does, shown as it happens: for people on a terminal, as it is everywhere else."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, assert_never

from casemate.cli.attach import STDERR, STDOUT, write_all
from casemate.cli.prompt.harmless import Stream, harmless
from casemate.cli.prompt.pictures import KINDS, Folder, drawn, protocol_of
from casemate.sdk.code import (
    CodeOutOfMemory,
    CodeTimedOut,
    ContextDied,
    Interrupted,
    Ok,
    Raised,
    SandboxDied,
)

if TYPE_CHECKING:
    from casemate.sdk.code import CodeEnd, Execution, Result, Table

ROWS, CELL_CHARS = 30, 60
TEXT_CHARS = 200_000  # of one result on a terminal


class Shown:
    """The way out for all that cells do. *folder* is where pictures go."""

    def __init__(self, folder: Path | None, env: Mapping[str, str] = os.environ) -> None:
        self.terminal = os.isatty(STDOUT)
        self._coloured = {fd: wants_colours(env, on_terminal=os.isatty(fd)) for fd in (STDOUT, STDERR)}
        self._protocol = protocol_of(env) if self.terminal and folder is None else None
        self._folder = Folder(folder)
        self._streams = self._begun()
        self._at_start = True

    def _begun(self) -> dict[int, Stream]:
        return {fd: Stream(colours=colours) for fd, colours in self._coloured.items()}

    def stdout(self, data: bytes) -> None:
        self._output(STDOUT, data)

    def stderr(self, data: bytes) -> None:
        self._output(STDERR, data)

    def _output(self, descriptor: int, data: bytes) -> None:
        if os.isatty(descriptor):
            data = self._streams[descriptor].feed(data).encode()
        self._write(descriptor, data)

    def _write(self, descriptor: int, data: bytes) -> None:
        if data:
            write_all(descriptor, data)
            if os.isatty(descriptor):
                self._at_start = data.endswith(b"\n")

    def _line(self, text: str, descriptor: int = STDOUT) -> None:
        """Text of ours, or made harmless, on lines of its own."""
        if os.isatty(descriptor) and not self._at_start:
            text = "\n" + text
        self._write(descriptor, (text if text.endswith("\n") else text + "\n").encode(errors="replace"))

    def result(self, result: Result) -> None:
        if result.table is not None and self.terminal:
            self._line(self._drawn_table(result.table))
        elif result.text is not None and not (self.terminal and self._has_picture(result)):
            self._line(self._safe(result.text))
        for mime, ending in KINDS.items():
            if mime in result.data:
                self._picture(result, mime, ending)
        for mime, size in result.cut.items():
            self.note(f"{mime} was cut: it had {size} bytes")

    def _has_picture(self, result: Result) -> bool:
        return any(mime in result.data for mime in KINDS)

    def _picture(self, result: Result, mime: str, ending: str) -> None:
        data = {"png": result.png, "jpg": result.jpeg, "pdf": result.pdf}.get(ending)
        if data is None:
            data = (result.svg or "").encode(errors="replace")
        if self._protocol is not None and (sequence := drawn(self._protocol, data)) is not None:
            self._line("")
            self._write(STDOUT, sequence + b"\n")
            return
        try:
            path = self._folder.save(data, ending)
        except OSError as error:
            self.note(f"a picture could not be saved: {error.strerror}: {error.filename}")
            return
        self._line(f"[{mime}: {path}]")

    def _safe(self, text: str) -> str:
        if not self.terminal:
            return text
        cut = f"\n[{len(text) - TEXT_CHARS} more characters]" if len(text) > TEXT_CHARS else ""
        return harmless(text[:TEXT_CHARS]) + cut

    def _drawn_table(self, table: Table) -> str:
        from io import StringIO

        from rich.box import SIMPLE_HEAD
        from rich.console import Console
        from rich.table import Table as Drawn
        from rich.text import Text

        drawn_table = Drawn(box=SIMPLE_HEAD, pad_edge=False)
        for column in table.columns:
            number = any(kind in column.type for kind in ("int", "float"))
            drawn_table.add_column(Text(_cell(column.name)), justify="right" if number else "left", overflow="ellipsis")
        for row in table.rows[:ROWS]:
            drawn_table.add_row(*(Text(_cell(value)) for value in row))  # Text: no markup of the guest's
        out = StringIO()
        colours = self._coloured[STDOUT]
        console = Console(file=out, force_terminal=colours, no_color=not colours, width=_width())
        console.print(drawn_table)
        rows, columns = table.shape
        if rows > min(len(table.rows), ROWS) or columns > len(table.columns):
            console.print(
                Text(f"{min(len(table.rows), ROWS)} of {rows} rows, {len(table.columns)} of {columns} columns")
            )
        return out.getvalue()

    def end(self, execution: Execution) -> bool:
        """How it ended, in words; whether well."""
        for descriptor, stream in self._streams.items():
            if os.isatty(descriptor):
                self._write(descriptor, stream.end().encode())
        self._streams = self._begun()
        if self.terminal and not self._at_start:
            self._line("")
        return self._said(execution.end)

    def _said(self, end: CodeEnd) -> bool:
        match end:
            case Ok():
                return True
            case Raised(name, value, traceback):
                self._error(traceback or f"{name}: {value}")
            case Interrupted(state_kept):
                self.note("interrupted" + _state(state_kept))
            case CodeTimedOut(after_s, state_kept):
                self.note(f"timed out after {after_s:g} s" + _state(state_kept))
            case CodeOutOfMemory():
                self.note("out of memory" + _state(False))
            case ContextDied(reason):
                self.note(f"the interpreter ended: {reason}" + _state(False))
            case SandboxDied(code, message):
                self.note(f"the sandbox ended: {message} ({code})")
            case _:
                assert_never(end)
        return False

    def _error(self, traceback: str) -> None:
        colours = self._coloured[STDERR]
        text = harmless(traceback) if colours or os.isatty(STDERR) else traceback
        if colours:
            from pygments import highlight
            from pygments.formatters import TerminalFormatter
            from pygments.lexers import PythonTracebackLexer

            text = highlight(text, PythonTracebackLexer(), TerminalFormatter())
        self._line(text, STDERR)

    def note(self, text: str) -> None:
        self._line(f"casemate: {harmless(text)}", STDERR)


def wants_colours(env: Mapping[str, str], *, on_terminal: bool) -> bool:
    """By NO_COLOR, then FORCE_COLOR, where they are set; else on every terminal but a dumb one."""
    if env.get("NO_COLOR"):
        return False
    if forced := env.get("FORCE_COLOR"):
        return forced not in ("0", "false")
    return on_terminal and env.get("TERM") != "dumb"


def _state(kept: bool) -> str:
    return "; its variables are kept" if kept else "; its variables are lost"


def _cell(value: Any) -> str:
    text = harmless("" if value is None else str(value)).replace("\n", "⏎").replace("\r", " ").replace("\t", " ")
    return text if len(text) <= CELL_CHARS else text[: CELL_CHARS - 1] + "…"


def _width() -> int:
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns or 80
    except (OSError, ValueError):
        return 80
