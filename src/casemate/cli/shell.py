"""``casemate shell``: a terminal in a sandbox."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from casemate.cli import options


def shell(
    ref: Annotated[str, typer.Argument(metavar="SANDBOX", help="Its id, the beginning of it, or its name.")],
    words: Annotated[list[str] | None, typer.Argument(metavar="[--] [CMD [ARGS]...]", show_default=False)] = None,
    env: Annotated[list[str] | None, typer.Option("--env", metavar="K=V", help="Set a variable; K: pass ours.")] = None,
    cwd: Annotated[str | None, typer.Option("--cwd", metavar="PATH", help="The folder it runs in.")] = None,
    user: Annotated[str | None, typer.Option("--user", metavar="NAME", help="The guest's user it runs as.")] = None,
) -> None:
    """Open a shell in a sandbox, or run CMD on a terminal there.

    Every key reaches the guest, also Ctrl-C and Ctrl-Z; the window's size follows ours. Exit status as with run.

    Example:
      casemate shell work
      casemate shell work -- python3
    """
    argv = words[1:] if words and words[0] == "--" else words
    variables = options.env_of(env or [])
    from casemate.cli import screen
    from casemate.sdk import Client, Sandbox

    settings: dict[str, Any] = {**screen.about(), "env": variables, "cwd": cwd, "user": user}
    with Client() as client:
        commands = Sandbox.connect(ref, client=client).commands
        with commands.terminal(argv, **settings) if argv else commands.terminal(**settings) as terminal:
            status = screen.carry(terminal)
    raise typer.Exit(status)
