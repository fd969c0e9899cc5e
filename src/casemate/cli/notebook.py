"""``casemate notebook``: a notebook's cells, run in a sandbox."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from casemate.cli import options
from casemate.cli.target import Standard, Target
from casemate.errors import InvalidSpec, RequestError

if TYPE_CHECKING:
    from casemate.integrations.jupyter.notebook import CellRun, NotebookRun
    from casemate.sdk import Client, Context, Sandbox

app = typer.Typer(help="Notebooks: run.", rich_markup_mode=None)
INTERRUPTED = 130
STANDARD = "-"
MAX_BYTES = 2**28 + 1  # one more than a notebook may have


def run(
    notebook: Annotated[Path, typer.Argument(metavar="NB.ipynb", help="The notebook; - is standard input.")],
    out: Annotated[
        str | None, typer.Option("--out", "-o", metavar="OUT", help="Where the result goes; NB.out.ipynb, - is stdout.")
    ] = None,
    in_place: Annotated[bool, typer.Option("--in-place", help="Write into the notebook itself.")] = False,
    param: Annotated[
        list[str] | None, typer.Option("--param", "-p", metavar="K=V", help="Set a parameter: JSON, else text.")
    ] = None,
    params_file: Annotated[
        list[Path] | None, typer.Option("--params-file", metavar="FILE", help="Parameters, a JSON or YAML object.")
    ] = None,
    timeout_s: Annotated[float | None, typer.Option("--timeout", metavar="S", help="Of each cell.")] = None,
    keep_going: Annotated[bool, typer.Option("--keep-going", help="Go on after a cell that failed.")] = False,
    show: Annotated[bool, typer.Option("--show", help="Show output and results here, too.")] = False,
    language: Annotated[
        str | None, typer.Option("--language", metavar="NAME", help="Instead of the notebook's own.")
    ] = None,
    ref: Annotated[str | None, typer.Option("--sandbox", metavar="SANDBOX", help="In this one, not a new one.")] = None,
    image: Annotated[str, typer.Option("--image", help="What a new sandbox starts from.")] = "python",
    memory_mib: Annotated[int | None, typer.Option("--memory", metavar="MIB", help="A new guest's memory.")] = None,
    env: Annotated[list[str] | None, typer.Option("--env", metavar="K=V", help="Set a variable; K: pass ours.")] = None,
    put: Annotated[list[str] | None, typer.Option("--put", metavar="HOST[:GUEST]", help="Copy a file in.")] = None,
    get: Annotated[list[str] | None, typer.Option("--get", metavar="GUEST[:HOST]", help="Copy a file out.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object about it.")] = False,
) -> None:
    """Run a notebook's cells in a sandbox, and write a notebook with what they did.

    In a new sandbox that is gone afterwards, or with --sandbox in a new context of one that is there. The result is
    written after every cell. Parameters go after the cell that is tagged parameters, as with papermill; the tags
    skip-execution and raises-exception mean what they do to nbclient. Ctrl-C interrupts the cell and ends the run.
    The exit status is that of the first cell that failed: 1, 124 for a time-out, 137 when out of memory; 130 after
    Ctrl-C. Needs casemate[jupyter].

    Example:
      casemate notebook run report.ipynb --param region=north --put sales.csv
      casemate notebook run --in-place --keep-going --timeout 60 report.ipynb
    """
    target = _target(notebook, out, in_place=in_place)
    if target is None and (show or as_json):
        raise InvalidSpec("the notebook goes to standard output", hint="with --show or --json say --out FILE")
    if show and as_json:
        raise InvalidSpec("--show and --json: both want standard output", hint="give one of them")
    puts = [options.put_here_of(word) for word in put or []]
    gets = [options.get_here_of(word) for word in get or []]
    variables = options.env_of(env or [])
    from casemate.integrations import jupyter

    jupyter.require("nbformat")
    from casemate.integrations.jupyter import document, parameters

    nb = document.read_notebook(_read(notebook), str(notebook))
    given = parameters.of_files(params_file or []) | parameters.of_words(param or [])
    spoken = language or document.language_of(nb)
    if given:
        nb["metadata"]["casemate"] = {"parameters": given}
        if not parameters.inject(nb, given, spoken) and not quiet:
            print("casemate: no cell is tagged parameters, so they are set first", file=sys.stderr)

    from casemate.cli import ferry
    from casemate.sdk import Client

    with Client() as client, _sandbox(client, ref, image, memory_mib, variables) as sandbox:
        ferry.put_all(sandbox, puts)
        done, interrupted = _executed(
            nb,
            sandbox,
            spoken,
            target,
            env=variables,
            timeout_s=timeout_s,
            keep_going=keep_going,
            quiet=quiet,
            show=show,
        )
        ferry.get_all(sandbox, gets, failed=not done.ok)
        if as_json:
            print(json.dumps(_summary(notebook, target, sandbox, done)))
    if interrupted:
        raise typer.Exit(INTERRUPTED)
    raise typer.Exit(next((cell.exit_code for cell in done.cells if cell.exit_code), 0))


def _executed(
    nb: Any,
    sandbox: Sandbox,
    language: str,
    target: Target | None,
    *,
    env: Mapping[str, str],
    timeout_s: float | None,
    keep_going: bool,
    quiet: bool,
    show: bool,
) -> tuple[NotebookRun, bool]:
    """Run it, with what there is so far in *target* after every cell; whether Ctrl-C has ended it."""
    from casemate.cli.cellbar import told
    from casemate.cli.prompt.interrupting import interrupts
    from casemate.cli.prompt.showing import Shown
    from casemate.integrations.jupyter.document import text_of
    from casemate.integrations.jupyter.notebook import Shows, run_notebook

    finished = False
    shown = Shown(None) if show else None
    with contextlib.ExitStack() as held:
        context = held.enter_context(_context(sandbox, language, env))
        tell = held.enter_context(told(quiet=quiet, as_lines=show))
        pressed = held.enter_context(interrupts(sandbox, context.context_id))

        def on_cell(cell: CellRun) -> bool:
            if shown is not None and cell.execution is not None:
                shown.end(cell.execution)
            if target is not None and cell.execution is not None:
                target.write(text_of(nb))
            tell(cell)
            return pressed.count == 0

        try:
            done = run_notebook(
                nb,
                sandbox,
                context=context,
                timeout_s=timeout_s,
                keep_going=keep_going,
                on_cell=on_cell,
                shows=Shows(shown.stdout, shown.stderr, shown.result) if shown is not None else None,
            )
            finished = True
        finally:
            if finished or any(cell.get("outputs") for cell in nb["cells"]):  # else what was there before is better
                (target or Standard()).write(text_of(nb))
        return done, pressed.count > 0


def _target(notebook: Path, out: str | None, *, in_place: bool) -> Target | None:
    """None: standard output."""
    if in_place and (out is not None or str(notebook) == STANDARD):
        raise InvalidSpec("--in-place writes into the notebook, which has to be a file", hint="leave --out away")
    if in_place:
        return Target(notebook)
    if out == STANDARD or (out is None and str(notebook) == STANDARD):
        return None
    path = Path(out) if out is not None else notebook.with_name(f"{notebook.stem}.out.ipynb")
    if path.exists() and notebook.exists() and path.samefile(notebook):
        raise InvalidSpec(f"--out {out}: is the notebook itself", hint="to write into it say --in-place")
    return Target(path)


def _read(notebook: Path) -> bytes:
    if str(notebook) == STANDARD:
        return sys.stdin.buffer.read(MAX_BYTES)
    try:
        with notebook.open("rb") as file:
            return file.read(MAX_BYTES)
    except OSError as error:
        raise RequestError(f"{notebook}: {error.strerror}", hint="it has to be a file you can read") from error


@contextlib.contextmanager
def _sandbox(
    client: Client, ref: str | None, image: str, memory_mib: int | None, env: Mapping[str, str]
) -> Iterator[Sandbox]:
    """A new one that goes with us, or the one that is there."""
    from casemate.cli.progress import first_use
    from casemate.sdk import Sandbox

    if ref is not None:
        yield Sandbox.connect(ref, client=client)
        return
    with first_use() as tell:
        created = Sandbox.create(
            image,
            memory_mib=memory_mib,
            env=env,
            idle_timeout_s=None,  # it lives as long as we do
            attached=True,
            progress=tell,
            client=client,
        )
    with created as sandbox:
        yield sandbox


@contextlib.contextmanager
def _context(sandbox: Sandbox, language: str, env: Mapping[str, str]) -> Iterator[Context]:
    """Of our own, and gone with us."""
    made = sandbox.contexts.create(language, env=env)
    try:
        yield made
    finally:
        with contextlib.suppress(RequestError):  # it has gone before us, with its sandbox
            sandbox.contexts.remove(made)


def _summary(notebook: Path, target: Target | None, sandbox: Sandbox, done: NotebookRun) -> dict[str, Any]:
    return {
        "notebook": str(notebook),
        "out": str(target.path) if target is not None else None,
        "ok": done.ok,
        "duration_ms": done.duration_ms,
        "sandbox": {"id": sandbox.id, "image": sandbox.info.image, "isolation": sandbox.info.isolation},
        "cells": [_cell_summary(cell) for cell in done.cells],
    }


def _cell_summary(cell: CellRun) -> dict[str, Any]:
    ran = cell.execution
    error = ran.error if ran is not None else None
    return {
        "index": cell.index,
        "id": cell.cell_id,
        "state": cell.state,
        "execution_count": ran.execution_count if ran is not None else None,
        "duration_ms": ran.duration_ms if ran is not None else None,
        "error": {"name": error.name, "value": error.value} if error is not None else None,
    }


@app.callback()
def _one_of_several() -> None:
    """Makes Typer treat even a single verb as one of several."""


app.command("run", help=(run.__doc__ or "").replace("    Example", "    \b\n    Example"))(run)
