"""``casemate key``: API keys for what reaches the daemon over TCP."""

from __future__ import annotations

import json
import time
from typing import Annotated, Any

import typer

from casemate.cli.options import seconds_of
from casemate.cli.table import age, print_table

app = typer.Typer(help="API keys for use over TCP: create, ls, revoke.", rich_markup_mode=None)
HEAD = ("ID", "NAME", "TENANT", "SCOPES", "STATE", "AGE")
JSON = typer.Option("--json", help="Print one JSON object.")


def create(
    name: Annotated[str, typer.Option("--name", help="What it is for.")] = "",
    scope: Annotated[
        list[str] | None, typer.Option("--scope", metavar="SCOPE", help="What it may do; default *: everything.")
    ] = None,
    expires: Annotated[
        str | None, typer.Option("--expires", metavar="TIME", help="When it ends, from now: 12h, 30d.")
    ] = None,
    tenant: Annotated[str, typer.Option("--tenant", help="Whose things it reaches.")] = "local",
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """Make an API key and print it, this once.

    Only on the daemon's host, by its own user or root.

    Example:
      export CASEMATE_API_KEY=$(casemate key create --name ci --scope sandboxes:write --expires 30d)
    """
    expires_s = seconds_of("--expires", expires) if expires else None
    from casemate.sdk import Client, Keys

    with Client() as client:
        made = Keys(client).create(name=name, tenant=tenant, scopes=scope or ["*"], expires_s=expires_s)
    print(json.dumps(made) if as_json else made["key"])


def ls(as_json: Annotated[bool, JSON] = False) -> None:
    """List the keys, without their secrets.

    Example:
      casemate key ls
    """
    from casemate.sdk import Client, Keys

    with Client() as client:
        found = Keys(client).list()
    if as_json:
        print(json.dumps({"keys": found}))
        return
    print_table(HEAD, [_row(key) for key in found])


def revoke(
    key_id: Annotated[str, typer.Argument(metavar="KEY", help="Its id, or the whole key.")],
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """Refuse a key from now on, and end what is under way with it.

    Example:
      casemate key revoke 0v7k2m9xw4ta
    """
    from casemate.sdk import Client, Keys

    bare = key_id.removeprefix("cm_").partition("_")[0]
    with Client() as client:
        revoked = Keys(client).revoke(bare)
    print(json.dumps(revoked) if as_json else revoked["id"])


for command in (create, ls, revoke):
    app.command(help=(command.__doc__ or "").replace("    Example", "    \b\n    Example"))(command)


def _row(key: dict[str, Any]) -> tuple[str, ...]:
    state = "good"
    if key["revoked_at"] is not None:
        state = "revoked"
    elif key["expires_at"] is not None:
        left_s = key["expires_at"] - time.time()
        state = f"good for {left_s / 86_400:.1f} d" if left_s > 0 else "expired"
    return key["id"], key["name"] or "-", key["tenant"], " ".join(key["scopes"]), state, age(key["created_at"])
