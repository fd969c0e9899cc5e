"""``casemate image``: list, build and inspect what sandboxes start from."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Annotated, Any

import typer

from casemate.cli.table import age, mib, print_table

app = typer.Typer(help="What sandboxes start from: list, build, carry to another host, remove.", rich_markup_mode=None)
HEAD = ("IMAGE", "STATE", "SIZE", "SNAPSHOTS", "AGE")
REF = typer.Argument(metavar="IMAGE", help="A name, a version of it (python@1), or sha256:… of its root disk.")
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
    ref: Annotated[str, REF],
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


def verify(
    ref: Annotated[str, REF] = "python",
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """Hash all files of an image and its snapshots again.

    Exit status 1 when one of them is not what it was.

    Example:
      casemate image verify python
    """
    from casemate.cli.progress import first_use
    from casemate.errors import ImageBroken
    from casemate.sdk import Client, Images

    with Client() as client, first_use() as tell:
        report = Images(client).verify(ref, progress=tell)
    broken = [file for file in report["files"] if not file["ok"]]
    if as_json:
        print(json.dumps(report))
    else:
        for file in broken:
            print(f"{file['file']}: {file['why']}")
        print(f"{report['name']}@{report['version']}: {len(report['files']) - len(broken)} files are whole")
    if broken:
        raise ImageBroken(
            f"{len(broken)} of {len(report['files'])} files of {report['name']}@{report['version']} are broken",
            hint="a broken snapshot is built again by the next create; for the rest: casemate image build --force",
        )


def rm(
    refs: Annotated[list[str], typer.Argument(metavar="IMAGE...", help="Names, or versions: python@1.")],
    force: Annotated[bool, typer.Option("--force", "-f", help="Also the active version of an image.")] = False,
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """Remove versions of images, with their snapshots.

    Refused while a sandbox stands on one. A name alone means its active version, which takes --force; the newest
    of the others is then the active one.

    Example:
      casemate image rm python@1
    """
    from casemate.sdk import Client, Images

    with Client() as client:
        for ref in refs:
            gone = Images(client).remove(ref, force=force)
            print(json.dumps(gone) if as_json else f"Removed {ref}: {mib(gone['size_bytes'])}")


def prune(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go, and remove nothing.")] = False,
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """Remove what nothing needs.

    Old versions, snapshots made for another VMM or agent, files no image names, what a crash has left. What a
    sandbox stands on stays.

    Example:
      casemate image prune --dry-run
    """
    from casemate.sdk import Client, Images

    with Client() as client:
        gone = Images(client).prune(dry_run=dry_run)
    if as_json:
        print(json.dumps(gone))
        return
    for item in gone["removed"]:
        print(f"{item['kind']} {item['name']}: {item['why']} ({mib(item['size_bytes'])})")
    print(f"{'Would free' if dry_run else 'Freed'} {mib(gone['size_bytes'])}.")


def export(
    ref: Annotated[str, REF],
    output: Annotated[
        str | None, typer.Option("--output", "-o", metavar="FILE", help="Where to; -: standard output.")
    ] = None,
) -> None:
    """Write an image to one tar file, for another host.

    Kernel and disks, not the snapshots: those are built where it is imported.

    Example:
      casemate image export python -o python.tar
    """
    from casemate.cli.carry import export_image

    export_image(ref, output)


def import_(
    path: Annotated[str, typer.Argument(metavar="FILE", help="What export wrote; -: standard input.")],
    name: Annotated[str | None, typer.Option("--name", help="Another name than the one it had.")] = None,
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """Take in an image that was exported.

    It becomes the next version of its name, and the active one. All digests are checked; of a file that is damaged
    nothing stays. Import only what you trust as you would its maker: its programs run in your sandboxes.

    Example:
      casemate image import python.tar --name theirs
    """
    from casemate.cli.carry import import_image

    image = import_image(path, name)
    print(json.dumps(image) if as_json else f"Image {image['name']}@{image['version']} is ready.")


COMMANDS: dict[str, Callable[..., None]] = {
    "ls": ls,
    "build": build,
    "inspect": inspect,
    "verify": verify,
    "export": export,
    "import": import_,
    "rm": rm,
    "prune": prune,
}
for word, command in COMMANDS.items():
    app.command(word, help=(command.__doc__ or "").replace("    Example", "    \b\n    Example"))(command)


def _row(image: dict[str, Any]) -> tuple[str, ...]:
    shapes = [f"{s['vcpus']}x{s['memory_mib']}" for s in image["snapshots"] if s["state"] == "ready"]
    state = ", ".join([image["state"] + (" (active)" if image["active"] else ""), *_rebuilds(image)])
    reference = f"{image['name']}@{image['version']}"
    return reference, state, mib(image["size_bytes"]), " ".join(shapes) or "-", age(image["created_at"])


def _rebuilds(image: dict[str, Any]) -> list[str]:
    """What of it is just being rebuilt for another VMM, processor, kernel or agent, or could not be."""
    words = []
    for rebuild in image.get("rebuilds", []):
        if rebuild["state"] == "failed":
            words.append("rebuild failed")
        else:
            words.append("rebuilding" + (f" {rebuild['fraction']:.0%}" if rebuild["fraction"] is not None else ""))
    return list(dict.fromkeys(words))
