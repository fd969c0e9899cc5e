"""``casemate config``: what counts, and who says so."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from casemate import config
from casemate.cli.table import print_table

app = typer.Typer(help="Settings: what counts, and who says so.", rich_markup_mode=None)


def show(
    of_daemon: Annotated[bool, typer.Option("--daemon", help="Those the daemon was started with.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Print each setting: its value, and where it is from (default, file, env, flag).

    What a daemon started now would run with; with --daemon what the one that runs was started with.

    Example:
      casemate config show --json
    """
    found = _of_daemon() if of_daemon else [one.to_json() for one in config.explain()]
    if as_json:
        print(json.dumps({"settings": found}))
        return
    rows = [(one["name"], str(one["value"]), one["origin"], one["source"]) for one in found]
    print_table(("SETTING", "VALUE", "ORIGIN", "SOURCE"), rows)


def _of_daemon() -> list[dict[str, Any]]:
    from casemate.sdk import Client

    with Client() as client:
        return list(client.call("GET", "/v1/config")["settings"])


@app.callback()
def _only_verbs() -> None:
    """Makes Typer treat even a single verb as one of several."""


app.command("show", help=(show.__doc__ or "").replace("    Example", "    \b\n    Example"))(show)
