"""``casemate top``: what each sandbox takes, again and again on a terminal."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from casemate.cli.table import age, mib, print_table
from casemate.errors import CasemateError, NotFound

if TYPE_CHECKING:
    from casemate.sdk import Client, SandboxInfo, SandboxStats

HEAD = ("ID", "NAME", "IMAGE", "STATE", "CPU", "PRIVATE", "GUEST MEMORY", "EXECS", "AGE")
FIRST_S = 0.5  # between the two looks that a figure of CPU takes
CLEAR = "\x1b[H\x1b[J"


def top(
    refs: Annotated[list[str] | None, typer.Argument(metavar="[SANDBOX]...", show_default=False)] = None,
    once: Annotated[bool, typer.Option("--once", help="Once, also on a terminal.")] = False,
    interval_s: Annotated[float, typer.Option("--interval", metavar="S", min=0.2, help="Between two looks.")] = 2.0,
    as_json: Annotated[bool, typer.Option("--json", help="Once, as one JSON object.")] = False,
) -> None:
    """Show what sandboxes take: processor, memory, commands.

    On a terminal until Ctrl-C, elsewhere once. Looking does not put off the idle time-out, wakes none that is parked
    and resumes none that is suspended; of those there is less to see.

    Example:
      casemate top --once
    """
    from casemate.sdk import Client

    with Client() as client:
        before = _look(client, refs or [])
        time.sleep(min(FIRST_S, interval_s))
        while True:
            now = _look(client, refs or [])
            if as_json:
                print(json.dumps({"sandboxes": [_shown(*now[id], before.get(id)) for id in now]}))
                return
            again = sys.stdout.isatty() and not once
            print(CLEAR * again, end="")
            print_table(HEAD, [_row(*now[id], before.get(id)) for id in now])
            if not again:
                return
            sys.stdout.flush()
            before = now
            time.sleep(interval_s)


Look = tuple["SandboxInfo", "SandboxStats | None"]  # of a suspended one there are no figures
SHOWN = ("running", "suspending", "suspended", "resuming")


def _look(client: Client, refs: Sequence[str]) -> dict[str, Look]:
    """The sandboxes and their figures; a running one that ends while we look is left out, unless it was named."""
    from casemate.sdk import Sandbox, SandboxStats

    listed = [info for info in Sandbox.list(client=client) if info.state in SHOWN]
    wanted = [_named(listed, ref) for ref in refs] if refs else listed
    found: dict[str, Look] = {}
    for info in wanted:
        if info.state != "running":
            found[info.id] = (info, None)
            continue
        try:
            stats = SandboxStats.from_json(client.call("GET", f"/v1/sandboxes/{info.id}/stats"))
        except CasemateError:
            if refs:
                raise
            continue
        found[info.id] = (info, stats)
    return found


def _named(listed: Sequence[SandboxInfo], ref: str) -> SandboxInfo:
    found = [i for i in listed if ref in (i.id, i.name)] or [i for i in listed if ref and i.id.startswith(ref)]
    if len(found) != 1:
        raise NotFound(f"there is no running sandbox {ref[:80]!r}", hint="casemate ps lists them")
    return found[0]


def _percent(now: SandboxStats | None, before: Look | None) -> float | None:
    return now.cpu_percent_since(before[1]) if now and before and before[1] else None


def _shown(info: SandboxInfo, now: SandboxStats | None, before: Look | None) -> dict[str, Any]:
    about = {"name": info.name, "image": info.image, "state": info.state, "parked": info.parked, "sandbox": info.id}
    return about | (asdict(now) if now else {}) | {"cpu_percent": _percent(now, before)}


def _row(info: SandboxInfo, now: SandboxStats | None, before: Look | None) -> tuple[str, ...]:
    percent, memory, execs = _percent(now, before), "-", "-"
    if now is not None and now.guest is not None:
        used = now.guest.memory_total_bytes - now.guest.memory_available_bytes
        memory = f"{used >> 20} of {now.guest.memory_total_bytes >> 20} MiB"
        execs = str(now.guest.execs_running)
    return (
        info.id,
        info.name or "-",
        info.image,
        "parked" if info.parked else info.state,
        "-" if percent is None else f"{percent:.1f} %",
        mib(now.memory_private_bytes if now else None),
        memory,
        execs,
        age(info.created_at),
    )
