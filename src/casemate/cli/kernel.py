"""``casemate kernel``: Jupyter kernels whose cells run in a sandbox."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from casemate.errors import InvalidSpec

app = typer.Typer(help="Jupyter kernels: install, ls, rm.", rich_markup_mode=None)


def install(
    name: Annotated[str, typer.Option("--name", help="What Jupyter calls it.")] = "casemate",
    display_name: Annotated[str | None, typer.Option("--display-name", help="What editors show.")] = None,
    image: Annotated[str, typer.Option("--image", help="What its sandboxes start from.")] = "python",
    language: Annotated[
        str, typer.Option("--language", metavar="NAME", help="python, bash, javascript, jupyter:KERNEL.")
    ] = "python",
    memory_mib: Annotated[int | None, typer.Option("--memory", metavar="MIB", help="The guest's memory.")] = None,
    user: Annotated[bool, typer.Option("--user", help="For this user; the default.")] = False,
    sys_prefix: Annotated[bool, typer.Option("--sys-prefix", help="Into this Python's environment.")] = False,
    prefix: Annotated[str | None, typer.Option("--prefix", metavar="DIR", help="Into DIR/share/jupyter.")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Take the place of one of ours.")] = False,
) -> None:
    """Let JupyterLab, VS Code and nbclient run cells in a microVM.

    Each kernel has a sandbox of its own, which goes with it; a restart is a fresh one. CASEMATE_HOME and CASEMATE_URL
    are kept as they are now. Needs casemate[jupyter].

    Example:
      casemate kernel install
      casemate kernel install --name shell --display-name "Bash (microVM)" --language bash
    """
    import sys

    if user + sys_prefix + (prefix is not None) > 1:
        raise InvalidSpec("--user, --sys-prefix and --prefix are three places", hint="give one of them")
    from casemate.integrations import jupyter

    jupyter.require("jupyter_client", "ipykernel")
    from casemate.integrations.jupyter import spec

    place = sys.prefix if sys_prefix else prefix
    shown = display_name or f"{language.removeprefix('jupyter:').capitalize()} (Casemate microVM)"
    wish = spec.Spec(name, shown, image, language, memory_mib)
    print(spec.install(wish, user=place is None, prefix=place, replace=replace))


def ls(as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False) -> None:
    """List the kernels of Casemate that Jupyter finds.

    Example:
      casemate kernel ls --json
    """
    from casemate.integrations import jupyter

    jupyter.require("jupyter_client")
    from casemate.integrations.jupyter import spec

    found = spec.installed()
    if as_json:
        print(json.dumps({"kernels": [asdict(ours) for ours in found]}))
        return
    for ours in found:
        print(f"{ours.name}\t{ours.display_name}\t{ours.image}\t{ours.language}\t{ours.folder}")


def rm(name: Annotated[str, typer.Argument(metavar="NAME", help="As kernel ls has it.")]) -> None:
    """Remove a kernel's specification; kernels that run go on.

    Example:
      casemate kernel rm casemate
    """
    from casemate.integrations import jupyter

    jupyter.require("jupyter_client")
    from casemate.integrations.jupyter import spec

    spec.remove(name)


for verb in (install, ls, rm):
    app.command(verb.__name__, help=(verb.__doc__ or "").replace("    Example", "    \b\n    Example"))(verb)
