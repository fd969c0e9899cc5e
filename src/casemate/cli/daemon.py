"""``casemate daemon``: the process that runs the sandboxes: status, stop, restart."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any

import typer

app = typer.Typer(help="The process that runs the sandboxes: status, stop, restart.", rich_markup_mode=None)
JSON = typer.Option("--json", help="Print one JSON object.")


def status(as_json: Annotated[bool, JSON] = False) -> None:
    """Say whether a daemon runs, and how it does; starts none.

    The exit status is 1 when none runs.

    Example:
      casemate daemon status --json
    """
    from casemate.sdk import Client
    from casemate.sdk.daemon import answers
    from casemate.sdk.target import find_target

    target = find_target()
    if target.socket is not None and not answers(target.socket):
        print(json.dumps({"running": False, "target": str(target)}) if as_json else f"No daemon runs at {target}.")
        raise typer.Exit(1)
    with Client(str(target)) as client:  # by its socket: a client of the home would start one that just ended
        health = client.health()
    if as_json:
        print(json.dumps({"running": True, "target": str(target), **health}))
        return
    for name, value in _rows(health):
        print(f"{name + ':':<11} {value}")


def stop(as_json: Annotated[bool, JSON] = False) -> None:
    """Stop the daemon, and all its sandboxes; answers when it has ended.

    Nothing happens when none runs. The next command that needs one starts one.

    Example:
      casemate daemon stop
    """
    from casemate.sdk.daemon import stop_daemon
    from casemate.sdk.target import find_target

    target = find_target()
    pid = stop_daemon(target)
    if as_json:
        print(json.dumps({"stopped": pid is not None, "pid": pid}))
    else:
        print(f"Stopped the daemon (pid {pid})." if pid is not None else f"No daemon runs at {target}.")


def restart(as_json: Annotated[bool, JSON] = False) -> None:
    """Stop the daemon, if one runs, and start a new one in the background.

    All its sandboxes end. One that was started with casemate serve does not come back to its terminal.

    Example:
      casemate daemon restart
    """
    from casemate.errors import DaemonUnavailable
    from casemate.sdk import Client
    from casemate.sdk.daemon import start_daemon, stop_daemon
    from casemate.sdk.target import find_target

    target = find_target()
    if target.home is None:
        raise DaemonUnavailable(
            f"{target} is not this user's own daemon; it cannot be started from here",
            hint="unset CASEMATE_URL, and set CASEMATE_HOME for another home",
        )
    before = stop_daemon(target)
    start_daemon(target.home)
    with Client() as client:
        health = client.health()
    if as_json:
        print(json.dumps({"stopped": before, **health}))
    else:
        print(f"Restarted the daemon (pid {health['pid']})." if before else f"Started it (pid {health['pid']}).")


def _rows(health: Mapping[str, Any]) -> list[tuple[str, str]]:
    """As people read it. What a daemon of another version does not say is left out."""
    rows = [(name, str(health[name])) for name in ("status", "pid", "version", "home", "isolation") if name in health]
    if "uptime_s" in health:
        rows.append(("uptime", f"{health['uptime_s']:.0f} s"))
    room = health.get("admission", {})
    if "sandboxes" in health:
        rows.append(("sandboxes", f"{health['sandboxes']} live, {room.get('waiting', 0)} waiting"))
    for kind in ("memory", "disk"):
        if f"{kind}_budget_mib" in room:
            rows.append(
                (kind, f"{room[f'{kind}_reserved_mib']} of {room[f'{kind}_budget_mib']} MiB are reserved for sandboxes")
            )
    stored = health.get("stored", {})
    for body in stored.get("rebuilding", ()):
        rows.append(("rebuilding", f"{body['image']} ({body['shape']}): {body['message']}"))
    for body in stored.get("failed", ()):
        rows.append(("not rebuilt", f"{body['image']} ({body['shape']}): {body['error']}"))
    if lost := stored.get("suspended", {}).get("not_restorable"):
        rows.append(("suspended", f"{lost} cannot be restored here; see casemate doctor"))
    for kind, names in health.get("recovered", {}).items():
        told = ", ".join(f"{k}: {v}" for k, v in names.items()) if isinstance(names, dict) else ", ".join(names)
        rows.append((f"{'not swept' if kind == 'failed' else 'swept'}", told if kind == "failed" else f"{kind} {told}"))
    return rows


for verb in (status, stop, restart):
    app.command(help=(verb.__doc__ or "").replace("    Example", "    \b\n    Example"))(verb)
