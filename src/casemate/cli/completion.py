"""``casemate completion``: a script for the shell, and the answers to what it asks (by ``_CASEMATE_COMPLETE``).

Typer completes verbs and options. Names of sandboxes, images and snapshots come from a daemon that runs; none is
started.
"""

from __future__ import annotations

from enum import StrEnum
from importlib import import_module
from typing import Annotated, Any
from urllib.parse import quote

import typer

VARIABLE = "_CASEMATE_COMPLETE"
ANSWER_S = 1.0  # a shell that waits longer for a Tab is worse than one that offers nothing


class Shell(StrEnum):
    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


def completion(
    shell: Annotated[Shell, typer.Argument(metavar="bash|zsh|fish", help="The shell to complete in.")],
) -> None:
    """Print a script that lets a shell complete verbs, options, sandboxes, contexts, images and snapshots.

    Names come from a daemon that runs already; none is started for it.

    Example:
      casemate completion bash > ~/.local/share/bash-completion/completions/casemate
    """
    script = _typers().get_completion_script(prog_name="casemate", complete_var=VARIABLE, shell=shell.value)
    print(script)


def complete(app: typer.Typer) -> int:
    """Answer what a shell asks, as Typer does, after every argument has learnt what it may be."""
    _typers().completion_init()
    command: Any = typer.main.get_command(app)
    _teach(command)
    try:
        command.main(args=[], prog_name="casemate", complete_var=VARIABLE)
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 0
    return 0


def _teach(command: Any) -> None:
    """An argument's metavar says what belongs there, in whichever verb."""
    for child in getattr(command, "commands", {}).values():
        _teach(child)
    for parameter in command.params:
        metavar = str(parameter.metavar or "")
        if "SANDBOX" in metavar:
            parameter._custom_shell_complete = lambda ctx, param, word: _offered(_sandboxes(), word)
        elif metavar == "CONTEXT":
            parameter._custom_shell_complete = lambda ctx, param, word: _offered(_contexts(ctx.params.get("ref")), word)
        elif "SNAPSHOT" in metavar:
            parameter._custom_shell_complete = lambda ctx, param, word: _offered(_snapshots(), word)
        elif "IMAGE" in metavar or parameter.name == "image":
            parameter._custom_shell_complete = lambda ctx, param, word: _offered(_images(), word)


def _typers() -> Any:
    """Typer's own machinery; it declares none of it as exported."""
    return import_module("typer.completion")


def _offered(words: list[str], begun: str) -> list[str]:
    return [word for word in words if word.startswith(begun)]


def _sandboxes() -> list[str]:
    found = _asked("/v1/sandboxes").get("sandboxes", [])
    return [name for box in found for name in (box["name"], box["id"]) if name]


def _contexts(sandbox: str | None) -> list[str]:
    found = _asked(f"/v1/sandboxes/{quote(sandbox, safe='')}/contexts") if sandbox else {}
    return [context["context_id"] for context in found.get("contexts", [])]


def _images() -> list[str]:
    found = _asked("/v1/images").get("images", [])
    return _names_of(found)


def _snapshots() -> list[str]:
    return _names_of(_asked("/v1/snapshots").get("snapshots", []))


def _names_of(found: list[dict[str, Any]]) -> list[str]:
    tags = {f"{i['name']}:{i['tag']}" for i in found if i.get("tag")}
    return sorted({i["name"] for i in found} | {f"{i['name']}@{i['version']}" for i in found} | tags)


def _asked(path: str) -> dict[str, Any]:
    """The daemon's answer; nothing where none runs, or it does not answer at once: a Tab is no place for an error."""
    from casemate.errors import CasemateError
    from casemate.sdk import Client
    from casemate.sdk.daemon import answers

    try:
        with Client() as client:
            socket = client.target.socket
            if socket is not None and not answers(socket):
                return {}
            return client.call("GET", path, answer_s=ANSWER_S)
    except CasemateError:
        return {}
