"""``casemate exec``: a command in a sandbox that is there."""

from __future__ import annotations

from typing import Annotated

import typer

from casemate.cli import options
from casemate.errors import InvalidSpec


def exec_(
    ref: Annotated[str, typer.Argument(metavar="SANDBOX", help="Its id, the beginning of it, or its name.")],
    words: Annotated[list[str], typer.Argument(metavar="[--] CMD [ARGS]...", show_default=False)],
    timeout_s: Annotated[float | None, typer.Option("--timeout", metavar="S", help="Kill it after S seconds.")] = None,
    env: Annotated[list[str] | None, typer.Option("--env", metavar="K=V", help="Set a variable; K: pass ours.")] = None,
    cwd: Annotated[str | None, typer.Option("--cwd", metavar="PATH", help="The folder it runs in.")] = None,
    user: Annotated[str | None, typer.Option("--user", metavar="NAME", help="The guest's user it runs as.")] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Print its id and let it run on.")] = False,
) -> None:
    """Run a command in a sandbox that is there.

    Output, input, Ctrl-C and exit status as with run.

    Example:
      casemate exec work -- sh -c 'echo hello > note; cat note'
      casemate exec --detach work -- make
    """
    argv = words[1:] if words[0] == "--" else words
    if not argv:
        raise InvalidSpec("there is no command", hint="as: casemate exec work -- ls -l")
    variables = options.env_of(env or [])
    from casemate.cli import attach
    from casemate.sdk import Client, Sandbox

    with Client() as client:
        sandbox = Sandbox.connect(ref, client=client)
        feed = not detach and attach.has_input()
        started = sandbox.commands.start(
            argv, env=variables, cwd=cwd, user=user, timeout_s=timeout_s, stdin=feed, detach=detach
        )
        with started as running:
            if detach:
                print(running.exec_id)
                return
            status = attach.follow(running, feed=feed)
    raise typer.Exit(status)
