"""``casemate snapshot``: a sandbox as it is at this moment, kept as an image."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer


def snapshot(
    ref: Annotated[str, typer.Argument(metavar="SANDBOX", help="Its id, the beginning of it, or its name.")],
    name: Annotated[str, typer.Option("--name", help="Of the image it becomes a version of.")],
    tag: Annotated[str | None, typer.Option("--tag", help="To call that version by: NAME:TAG.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Keep a sandbox, with all that runs in it, as a version of an image, and print its name.

    Whatever takes an image takes it, also tomorrow: what ran in the sandbox goes on in each that is made of it.
    The image is yours alone and holds what memory and disk hold, secrets too. The sandbox goes on as before.

    Example:
      casemate snapshot work --name trained --tag good && casemate create --image trained:good
    """
    from casemate.sdk import Client, Sandbox

    with Client() as client:
        kept = Sandbox.connect(ref, client=client).snapshot(name, tag)
    if as_json:
        print(json.dumps(kept))
        return
    print(f"{kept['name']}@{kept['version']}")
    if sys.stderr.isatty():
        print(f"paused {kept['pause_ms']:.0f} ms, took {kept['took_ms']:.0f} ms", file=sys.stderr)
