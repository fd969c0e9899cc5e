"""``casemate repl``: a prompt on an interpreter in a sandbox."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from casemate.cli import options
from casemate.errors import CasemateError, InvalidSpec, RequestError

if TYPE_CHECKING:
    from casemate.cli.prompt.showing import Shown
    from casemate.sdk import Execution, Sandbox

DEFAULT = "default"


def repl(
    ref: Annotated[
        str | None,
        typer.Argument(metavar="[SANDBOX]", help="Its id, its beginning, or its name; else a new one."),
    ] = None,
    context: Annotated[str | None, typer.Option("--context", metavar="ID", help="The context; default.")] = None,
    language: Annotated[
        str | None, typer.Option("--language", metavar="NAME", help="A new context of this language.")
    ] = None,
    timeout_s: Annotated[float | None, typer.Option("--timeout", metavar="S", help="Of each cell.")] = None,
    save_to: Annotated[
        Path | None, typer.Option("--save-to", metavar="DIR", help="Save pictures here, instead of showing them.")
    ] = None,
    history: Annotated[bool, typer.Option("--history/--no-history", help="Remember what is typed.")] = True,
    image: Annotated[str, typer.Option("--image", help="What a new sandbox starts from.")] = "python",
    memory_mib: Annotated[int | None, typer.Option("--memory", metavar="MIB", help="A new guest's memory.")] = None,
    env: Annotated[list[str] | None, typer.Option("--env", metavar="K=V", help="Set a variable; K: pass ours.")] = None,
) -> None:
    """Open a prompt on an interpreter in a sandbox.

    In a new sandbox that is gone afterwards, or in one that is there. Enter runs what is complete, Alt-Enter begins a
    line, Tab completes, Ctrl-C interrupts what runs and keeps its variables, a second one ends the interpreter, Ctrl-D
    leaves. From a pipe it runs the cells between lines of # %%; the exit status is 1 if the last one failed.

    Example:
      casemate repl
      echo '6 * 7' | casemate repl work
    """
    variables = options.env_of(env or [])
    from casemate.cli.progress import first_use
    from casemate.cli.prompt.showing import Shown
    from casemate.sdk import Client, Sandbox

    if context is not None and language is not None:
        raise InvalidSpec("--context and --language: a context has its language", hint="give one of them")
    with Client() as client, contextlib.ExitStack() as held:
        if ref is not None:
            sandbox = Sandbox.connect(ref, client=client)
        else:
            with first_use() as tell:
                created = Sandbox.create(
                    image,
                    memory_mib=memory_mib,
                    env=variables,
                    idle_timeout_s=None,  # it lives as long as we do
                    attached=True,
                    progress=tell,
                    client=client,
                )
            sandbox = held.enter_context(created)
        with _context(sandbox, context, language) as (name, spoken):
            status = Loop(sandbox, name, spoken, timeout_s, Shown(save_to)).run(history=history)
    raise typer.Exit(status)


@contextlib.contextmanager
def _context(sandbox: Sandbox, context: str | None, language: str | None) -> Iterator[tuple[str, str]]:
    """The context's id and language; one that was made for us goes with us."""
    if language is None:
        known = {found.context_id: found.language for found in sandbox.contexts.list()}
        name = context or DEFAULT
        yield name, known.get(name, "python")
        return
    made = sandbox.contexts.create(language)
    try:
        yield made.context_id, made.language
    finally:
        with contextlib.suppress(RequestError):  # it has gone before us, with its sandbox
            sandbox.contexts.remove(made)


class Loop:
    """Read, run, show, until there is nothing more to read."""

    def __init__(self, sandbox: Sandbox, context: str, language: str, timeout_s: float | None, shown: Shown) -> None:
        self._sandbox = sandbox
        self._context = context
        self._language = language
        self._timeout_s = timeout_s
        self._shown = shown
        self._next = 1
        self._over = False  # there is no sandbox any more

    def run(self, *, history: bool) -> int:
        """The status to exit with."""
        if sys.stdin.isatty() and self._shown.terminal:
            for code in self._typed(history):
                self._answered(code)
                if self._over:
                    return 1
            return 0
        well = True
        for code in self._piped():
            well = self._cell(code)
            if self._over:
                break
        return 0 if well else 1

    def _answered(self, code: str) -> None:
        """A cell that could not be run is said, and the prompt comes back: a person can try another one."""
        try:
            self._cell(code)
        except RequestError as error:
            self._shown.note(f"error: {error}")

    def _typed(self, history: bool) -> Iterator[str]:
        from casemate.cli.prompt.cells import LEAVING
        from casemate.cli.prompt.harmless import harmless
        from casemate.cli.prompt.keyboard import Keyboard  # late: 0.1 s that a pipe does without

        info = self._sandbox.info
        print(f"{harmless(self._language)} in sandbox {self._sandbox.id} ({info.isolation}); Ctrl-D leaves")
        keyboard = Keyboard(self._language, self._asked, history=history)
        while True:
            try:
                code = keyboard.read(self._next)
            except KeyboardInterrupt:
                continue
            except EOFError:
                return
            if code.strip() in LEAVING:
                return
            if code.strip():
                yield code

    def _piped(self) -> Iterator[str]:
        from casemate.cli.prompt.cells import piped

        return piped(sys.stdin)

    def _cell(self, code: str) -> bool:
        from casemate.cli.prompt.interrupting import interrupts
        from casemate.sdk.code import SandboxDied

        with interrupts(self._sandbox, self._context):
            execution = self._sandbox.run_code(
                code,
                context=self._context,
                timeout_s=self._timeout_s,
                on_stdout=self._shown.stdout,
                on_stderr=self._shown.stderr,
                on_result=self._shown.result,
            )
        self._over = isinstance(execution.end, SandboxDied)
        self._count(execution)
        return self._shown.end(execution)

    def _count(self, execution: Execution) -> None:
        self._next = (execution.execution_count or self._next) + 1

    def _asked(self, text: str, cursor: int) -> tuple[list[str], int, int]:
        try:
            found = self._sandbox.contexts.complete(text, cursor, self._context)
        except CasemateError:
            return [], 0, 0
        return list(found.matches), found.start, found.end
