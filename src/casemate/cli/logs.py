"""``casemate logs``: what a sandbox's console said."""

from __future__ import annotations

from typing import Annotated

import typer

from casemate.errors import InvalidSpec


def logs(
    ref: Annotated[str, typer.Argument(metavar="SANDBOX", help="Its id, the beginning of it, or its name.")],
    console: Annotated[bool, typer.Option("--console", help="The guest's console; the default.")] = False,
    agent: Annotated[bool, typer.Option("--agent", help="The agent's lines on it only.")] = False,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the sandbox ends.")] = False,
) -> None:
    """Show what the kernel and the agent of a sandbox said.

    The last 64 KiB are held. The output of commands is not in it: see attach. On a terminal only what can be printed
    is: the guest chose these bytes.

    Example:
      casemate logs -f work
    """
    if console and agent:
        raise InvalidSpec("--console and --agent exclude each other", hint="the agent's lines are on the console, too")
    from casemate.cli.attach import STDOUT, write_all
    from casemate.sdk import Client, Sandbox

    with Client() as client:
        sandbox = Sandbox.connect(ref, client=client)
        with sandbox.logs("agent" if agent else "console", follow=follow) as pieces:
            for piece in pieces:
                write_all(STDOUT, shown(piece))


def shown(piece: bytes) -> bytes:
    """Without what would steer a terminal."""
    return bytes(sign for sign in piece if (sign >= 32 and sign != 127) or sign in b"\n\t")
