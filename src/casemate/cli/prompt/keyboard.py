"""Cells as they are typed: several lines, highlighted, completed by the guest, remembered."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, ThreadedCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.filters import Condition, has_completions
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.lexers import PygmentsLexer
from prompt_toolkit.output import ColorDepth

from casemate.cli.newfile import new_file
from casemate.cli.prompt.cells import complete, lexer_of
from casemate.cli.prompt.harmless import harmless

ANSWER_S = 1.5  # who waits longer for a Tab would rather type
MATCHES = 200
HISTORY_BYTES = 2 * 2**20
Ask = Callable[[str, int], tuple[list[str], int, int]]  # text, cursor → matches, start, end


class Keyboard:
    """One prompt after the other, as ``In [1]:``. Raises EOFError for Ctrl-D, KeyboardInterrupt for Ctrl-C."""

    def __init__(self, language: str, ask: Ask, *, history: bool) -> None:
        self._language = language
        lexer = lexer_of(language)
        self._session: PromptSession[str] = PromptSession(
            multiline=True,
            history=_history() if history else InMemoryHistory(),
            lexer=PygmentsLexer(type(lexer)) if lexer is not None else None,
            completer=ThreadedCompleter(_Guest(ask)),
            complete_while_typing=False,
            key_bindings=self._keys(),
            enable_open_in_editor=False,
            color_depth=ColorDepth.DEPTH_1_BIT if os.environ.get("NO_COLOR") else None,
        )

    def read(self, number: int) -> str:
        head = f"In [{number}]: "
        return self._session.prompt(head, prompt_continuation=lambda width, line, soft: "...: ".rjust(width))

    def _keys(self) -> KeyBindings:
        keys = KeyBindings()

        @Condition
        def at_the_end() -> bool:
            return self._session.default_buffer.document.is_cursor_at_the_end

        @keys.add("enter", filter=at_the_end & ~has_completions)
        def enter(event: KeyPressEvent) -> None:
            buffer = event.current_buffer
            if complete(buffer.text, self._language):
                buffer.validate_and_handle()
            else:
                buffer.newline(copy_margin=True)
                if buffer.document.text.rstrip().endswith(":") and self._language == "python":
                    buffer.insert_text("    ")

        @keys.add("escape", "enter")
        def alt_enter(event: KeyPressEvent) -> None:
            event.current_buffer.newline(copy_margin=True)

        @keys.add("tab", filter=~has_completions)
        def tab(event: KeyPressEvent) -> None:
            before = event.current_buffer.document.current_line_before_cursor
            if before.strip():
                event.current_buffer.start_completion(insert_common_part=True)
            else:
                event.current_buffer.insert_text("    ")

        return keys


class _Guest(Completer):
    """What the guest would complete. It may be slow, dead, or lie: then there is nothing to offer."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        if not complete_event.completion_requested:
            return
        found: list[tuple[list[str], int, int]] = []
        asking = threading.Thread(
            target=lambda: found.append(self._ask(document.text, document.cursor_position)), daemon=True
        )
        asking.start()
        asking.join(ANSWER_S)
        if found:
            yield from offered(document.text, document.cursor_position, *found[0])


def offered(text: str, cursor: int, matches: list[str], start: int, end: int) -> Iterator[Completion]:
    """The guest's matches, as far as they replace what stands before the cursor and are nothing but text."""
    if not 0 <= start <= cursor:
        return
    for match in matches[:MATCHES]:
        if match and match == harmless(match) and match.isprintable():
            yield Completion(match, start_position=start - cursor)


def history_path(env: Any = os.environ) -> Path:
    state = env.get("XDG_STATE_HOME") or str(Path(env.get("HOME", "/")) / ".local/state")
    return Path(state) / "casemate" / "repl-history"


def _history() -> History:
    """A file that only its owner reads: people type passwords into prompts."""
    path = history_path()
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        path.chmod(0o600)
        shorten(path)
    except OSError:
        return InMemoryHistory()  # a home that can't be written to is no reason not to work
    return FileHistory(str(path))


def shorten(path: Path, limit: int = HISTORY_BYTES) -> None:
    """Forget the oldest half of a file that has grown too large."""
    if path.stat().st_size <= limit:
        return
    data = path.read_bytes()[-limit // 2 :]
    begin = data.find(b"\n# ")  # an entry begins with its time
    with new_file(path) as file:
        file.write(data[begin:] if begin >= 0 else b"")
    path.chmod(0o600)
