"""``casemate context``: the interpreters in a sandbox."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from casemate.cli import options
from casemate.cli.table import print_table

app = typer.Typer(help="Interpreters in a sandbox: ls, create, restart, interrupt, rm.", rich_markup_mode=None)
HEAD = ("ID", "LANGUAGE", "VERSION", "STATE", "QUEUED", "RUN", "CWD")
SANDBOX = typer.Argument(metavar="SANDBOX", help="Its id, the beginning of it, or its name.")
CONTEXT = typer.Argument(metavar="CONTEXT", help="As context ls shows it.")
JSON = typer.Option("--json", help="Print one JSON object.")


def ls(ref: Annotated[str, SANDBOX], as_json: Annotated[bool, JSON] = False) -> None:
    """List the contexts of a sandbox: interpreters with variables of their own.

    Example:
      casemate context ls work
    """
    from casemate.sdk import Client, Sandbox

    with Client() as client:
        found = Sandbox.connect(ref, client=client).contexts.list()
    if as_json:
        print(json.dumps({"contexts": [asdict(context) for context in found]}))
        return
    from casemate.cli.prompt.harmless import harmless  # it is the guest that says all this

    rows = [
        (c.context_id, c.language, c.version or "-", c.state, str(c.queued), str(c.execution_count), c.cwd or "-")
        for c in found
    ]
    print_table(HEAD, [[harmless(cell).replace("\n", "\ufffd") for cell in row] for row in rows])


def create(
    ref: Annotated[str, SANDBOX],
    language: Annotated[
        str, typer.Option("--language", metavar="NAME", help="python, bash, javascript or jupyter:KERNEL.")
    ] = "python",
    cwd: Annotated[str | None, typer.Option("--cwd", metavar="PATH", help="The folder it begins in.")] = None,
    env: Annotated[list[str] | None, typer.Option("--env", metavar="K=V", help="Set a variable; K: pass ours.")] = None,
    user: Annotated[str | None, typer.Option("--user", metavar="NAME", help="The guest's user it runs as.")] = None,
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """Start an interpreter in a sandbox, and print its id.

    Example:
      casemate context create work --language bash
    """
    variables = options.env_of(env or [])
    from casemate.sdk import Client, Sandbox

    with Client() as client:
        made = Sandbox.connect(ref, client=client).contexts.create(language, cwd=cwd, env=variables, user=user)
    print(json.dumps(asdict(made)) if as_json else made.context_id)


def restart(ref: Annotated[str, SANDBOX], context: Annotated[str, CONTEXT]) -> None:
    """End an interpreter and start it anew: its variables are gone.

    Example:
      casemate context restart work default
    """
    from casemate.sdk import Client, Sandbox

    with Client() as client:
        Sandbox.connect(ref, client=client).contexts.restart(context)
    print(context)


def interrupt(ref: Annotated[str, SANDBOX], context: Annotated[str, CONTEXT]) -> None:
    """Interrupt what an interpreter runs; its variables stay.

    Example:
      casemate context interrupt work default
    """
    from casemate.sdk import Client, Sandbox

    with Client() as client:
        Sandbox.connect(ref, client=client).contexts.interrupt(context)
    print(context)


def rm(ref: Annotated[str, SANDBOX], context: Annotated[str, CONTEXT]) -> None:
    """End an interpreter, with its variables and what waits for it.

    Example:
      casemate context rm work ctx-1
    """
    from casemate.sdk import Client, Sandbox

    with Client() as client:
        Sandbox.connect(ref, client=client).contexts.remove(context)
    print(context)


for name, command in (("ls", ls), ("create", create), ("restart", restart), ("interrupt", interrupt), ("rm", rm)):
    app.command(name, help=(command.__doc__ or "").replace("    Example", "    \b\n    Example"))(command)
