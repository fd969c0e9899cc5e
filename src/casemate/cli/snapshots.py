"""``casemate snapshots``: what was kept of sandboxes, as objects."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Annotated, Any

import typer

from casemate.cli.table import age, mib, print_table

app = typer.Typer(help="What was kept of sandboxes: list, carry to another host, remove.", rich_markup_mode=None)
HEAD = ("SNAPSHOT", "TAG", "STATE", "SIZE", "PARENT", "USED BY", "AGE")
REF = typer.Argument(metavar="SNAPSHOT", help="A name, a version of it (work@1), its tag (work:good), or its id.")
JSON = typer.Option("--json", help="Print one JSON object.")


def ls(as_json: Annotated[bool, JSON] = False) -> None:
    """List the snapshots.

    SIZE is what each takes by itself; the disks of its image it shares.

    Example:
      casemate snapshots ls
    """
    from casemate.sdk import Client

    with Client() as client:
        found = client.snapshots.list()
    if as_json:
        print(json.dumps({"snapshots": found}))
        return
    print_table(HEAD, [_row(one) for one in found])


def inspect(
    ref: Annotated[str, REF], as_json: Annotated[bool, typer.Option("--json", help="On one line.")] = False
) -> None:
    """Print all there is to know about a snapshot.

    Its own and shared bytes, its parent, who uses it, and why it cannot be used on this host, if so.

    Example:
      casemate snapshots inspect work:good --json
    """
    from casemate.sdk import Client

    with Client() as client:
        found = client.snapshots.get(ref)
    print(json.dumps(found, indent=None if as_json else 2))


def rm(
    refs: Annotated[list[str], typer.Argument(metavar="SNAPSHOT...", help="Names, versions, tags or ids.")],
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """Remove snapshots.

    Refused while a sandbox, suspended or not, or a pool stands on one. What a name alone means is its newest version;
    the newest of the others is then what it means.

    Example:
      casemate snapshots rm work@1
    """
    from casemate.sdk import Client

    with Client() as client:
        for ref in refs:
            gone = client.snapshots.remove(ref)
            print(json.dumps(gone) if as_json else f"Removed {ref}: {mib(gone['size_bytes'])}")


def prune(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go, and remove nothing.")] = False,
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """Remove the snapshots that nothing means.

    Those that failed, and the versions that are not the active one, have no tag and are used by nobody.

    Example:
      casemate snapshots prune --dry-run
    """
    from casemate.sdk import Client

    with Client() as client:
        gone = client.snapshots.prune(dry_run=dry_run)
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
    no_base: Annotated[
        bool, typer.Option("--no-base", help="Without kernel and disks of its image: where it goes has them.")
    ] = False,
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """Write a snapshot to one tar file, for another host of the same platform.

    Prints the file's sha256, which the import asks for. What the sandbox had in memory is in it, secrets too.

    Example:
      casemate snapshots export work:good -o work.tar
    """
    from casemate.cli.carry import export_snapshot

    written = export_snapshot(ref, output, base=not no_base)
    if written is not None:
        print(json.dumps(written) if as_json else f"{written['sha256']}  {written['file']}")


def import_(
    path: Annotated[str, typer.Argument(metavar="FILE", help="What export wrote; -: standard input.")],
    sha256: Annotated[str, typer.Option("--sha256", metavar="DIGEST", help="What its export printed.")],
    name: Annotated[str | None, typer.Option("--name", help="Another name than the one it had.")] = None,
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """Take in a snapshot that was exported.

    It becomes the next version of its name, and the active one. The VMM and the processor have to be those it was made
    with. For the host's owner, who vouches for whoever exported it: a VMM reads what is in it.

    Example:
      casemate snapshots import work.tar --sha256 "$(cut -d' ' -f1 work.sha256)"
    """
    from casemate.cli.carry import import_snapshot

    found = import_snapshot(path, sha256, name)
    print(json.dumps(found) if as_json else f"{found['name']}@{found['version']}")


COMMANDS: dict[str, Callable[..., None]] = {
    "ls": ls,
    "inspect": inspect,
    "rm": rm,
    "export": export,
    "import": import_,
    "prune": prune,
}
for word, command in COMMANDS.items():
    app.command(word, help=(command.__doc__ or "").replace("    Example", "    \b\n    Example"))(command)


def _row(one: dict[str, Any]) -> tuple[str, ...]:
    state = one["state"] + (" (active)" if one["active"] else "")
    users = [user["name"] or f"{user['kind']} {user['id'][:8]}" for user in one["users"]]
    used_by = ", ".join(users[:3]) + (f" and {len(users) - 3} more" if len(users) > 3 else "")
    size, parent, tag = mib(one["own_bytes"]), one["parent"] or "-", one["tag"] or "-"
    return f"{one['name']}@{one['version']}", tag, state, size, parent, used_by or "-", age(one["created_at"])
