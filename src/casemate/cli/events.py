"""``casemate events``: what happened."""

from __future__ import annotations

import json
import time
from typing import Annotated, Any

import typer


def events(
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on, as things happen.")] = False,
    after: Annotated[int | None, typer.Option("--after", metavar="ID", help="Those after this event.")] = None,
    limit: Annotated[int, typer.Option("--limit", metavar="N", help="At most so many, the newest.")] = 100,
    all_tenants: Annotated[bool, typer.Option("--all-tenants", help="Everybody's; for the operator.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object for each, on a line.")] = False,
) -> None:
    """Print what happened, oldest first.

    Example:
      casemate events -f --json
    """
    from casemate.sdk import Client, Events

    with Client() as client:
        source = Events(client)
        found = source.list(after=after, limit=limit, all_tenants=all_tenants)
        for event in found:
            _print(event, as_json)
        if not follow:
            return
        seen = found[-1]["id"] if found else after
        with source.follow(after=seen, all_tenants=all_tenants) as more:
            for event in more:
                _print(event, as_json)


def _print(event: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(event), flush=True)
        return
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event["created_at"]))
    detail = " ".join(f"{name}={_word(value)}" for name, value in event["detail"].items())
    print(f"{at}  {event['event']:<28}  {event['subject']}  by {event['actor']}  {detail}".rstrip(), flush=True)


def _word(value: Any) -> str:
    """One line, printable: some of it was chosen by a guest or a stranger."""
    text = value if isinstance(value, str) else json.dumps(value)
    return "".join(sign if sign.isprintable() else " " for sign in text)[:200]
