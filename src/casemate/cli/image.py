"""``casemate image``: list, build and inspect what sandboxes start from."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from casemate.cli.table import age, mib, print_table

app = typer.Typer(help="What sandboxes start from: ls, build, inspect.", rich_markup_mode=None)
HEAD = ("IMAGE", "STATE", "SIZE", "SNAPSHOTS", "AGE")
JSON = typer.Option("--json", help="Print one JSON object.")


def ls(as_json: Annotated[bool, JSON] = False) -> None:
    """List the images.

    Example:
      casemate image ls
    """
    from casemate.sdk import Client, Images

    with Client() as client:
        found = Images(client).list()
    if as_json:
        print(json.dumps({"images": found}))
        return
    print_table(HEAD, [_row(image) for image in found])


def inspect(
    ref: Annotated[str, typer.Argument(metavar="IMAGE", help="A name, or a version of it: python@1.")],
    as_json: Annotated[bool, typer.Option("--json", help="On one line.")] = False,
) -> None:
    """Print all there is to know about an image.

    Its files, its platform, and how a clone of it is started.

    Example:
      casemate image inspect python --json
    """
    from casemate.sdk import Client, Images

    with Client() as client:
        found = Images(client).get(ref)
    print(json.dumps(found, indent=None if as_json else 2))


def build(
    name: Annotated[str, typer.Argument(metavar="IMAGE", help="The image to build.")] = "python",
    force: Annotated[bool, typer.Option("--force", help="A new version, also when there is a good one.")] = False,
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """Build an image, unless it is built, and its snapshot.

    Example:
      casemate image build python
    """
    from casemate.cli.progress import build_image

    image = build_image(name, force=force, quiet=as_json)
    print(json.dumps(image) if as_json else f"Image {image['name']}@{image['version']} is ready.")


for command in (ls, build, inspect):
    app.command(help=(command.__doc__ or "").replace("    Example", "    \b\n    Example"))(command)


def _row(image: dict[str, Any]) -> tuple[str, ...]:
    shapes = [f"{s['vcpus']}x{s['memory_mib']}" for s in image["snapshots"] if s["state"] == "ready"]
    state = image["state"] + (" (active)" if image["active"] else "")
    reference = f"{image['name']}@{image['version']}"
    return reference, state, mib(image["size_bytes"]), " ".join(shapes) or "-", age(image["created_at"])
