"""``casemate pool``: ready sandboxes of an image, so that a create does not wait for a restore."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from casemate.cli.table import print_table

app = typer.Typer(help="Ready sandboxes (provisioned concurrency): set, ls, rm.", rich_markup_mode=None)
HEAD = (
    *("ID", "IMAGE", "SHAPE", "READY", "MIN-MAX", "CLAIMED", "IN USE", "HITS", "MISSES"),
    *("CLAIM p50/p95", "REFILL p50", "STATE"),
)
JSON = typer.Option("--json", help="Print one JSON object.")


def set_(
    image: Annotated[str, typer.Argument(help="What they are made of; another version of it replaces them.")],
    min_ready: Annotated[int, typer.Option("--min-ready", metavar="N", help="So many are always ready.")],
    max_ready: Annotated[
        int | None, typer.Option("--max-ready", metavar="M", help="Up to so many when more are used; default: N.")
    ] = None,
    target: Annotated[
        float, typer.Option("--target-utilization", metavar="SHARE", help="Of all used or ready, how many are used.")
    ] = 0.7,
    memory: Annotated[int | None, typer.Option("--memory", metavar="MIB", help="The guest's memory.")] = None,
    vcpus: Annotated[int | None, typer.Option("--vcpus", metavar="N", help="The guest's processors.")] = None,
    disk: Annotated[int | None, typer.Option("--disk", metavar="MIB", help="Its writable disk.")] = None,
    schedule: Annotated[
        str | None, typer.Option("--schedule", metavar="CRON", help="Only in these minutes, in local time.")
    ] = None,
    shared: Annotated[bool, typer.Option("--shared", help="For every tenant of this host.")] = False,
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """Keep sandboxes of an image ready, or change how many.

    Setting the same image and shape again changes its numbers.

    Example:
      casemate pool set python --min-ready 4 --max-ready 16 --schedule "* 8-18 * * 1-5"
    """
    from casemate.sdk import Client

    with Client() as client:
        made = client.pools.set(
            image,
            min_ready=min_ready,
            max_ready=max_ready,
            target_utilization=target,
            vcpus=vcpus,
            memory_mib=memory,
            disk_mib=disk,
            schedule=schedule,
            shared=shared,
        )
    print(json.dumps(made) if as_json else made["id"])


def ls(as_json: Annotated[bool, JSON] = False) -> None:
    """List the pools, and what they did since the daemon started.

    Example:
      casemate pool ls
    """
    from casemate.sdk import Client

    with Client() as client:
        found = client.pools.list()
    if as_json:
        print(json.dumps({"pools": found}))
        return
    print_table(HEAD, [_row(pool) for pool in found])


def rm(
    pool: Annotated[str, typer.Argument(help="Its id, the beginning of it, or its image.")],
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """Remove a pool: its ready sandboxes are ended, those in use live on.

    Example:
      casemate pool rm python
    """
    from casemate.sdk import Client

    with Client() as client:
        gone = client.pools.remove(pool)
    print(json.dumps(gone) if as_json else gone["id"])


for name, command in (("set", set_), ("ls", ls), ("rm", rm)):
    app.command(name, help=(command.__doc__ or "").replace("    Example", "    \b\n    Example"))(command)


def _row(pool: dict[str, Any]) -> tuple[str, ...]:
    most = pool["max_ready"] if pool["max_ready"] is not None else pool["min_ready"]
    return (
        pool["id"][:12],
        pool["image"] + (" (shared)" if pool["tenant"] == "system" else ""),
        f"{pool['vcpus']}/{pool['memory_mib']}/{pool['disk_mib']}",
        f"{pool['ready']}/{pool['wanted']}",
        f"{pool['min_ready']}-{most}",
        *(_counted(pool) if pool["claim"] is not None else ("-",) * 6),  # only its owner is told
        _state(pool),
    )


def _counted(pool: dict[str, Any]) -> tuple[str, ...]:
    claim, misses = pool["claim"], pool["misses"]
    why = ", ".join(f"{count} {reason}" for reason, count in misses.items())
    return (
        str(pool["claimed"]),
        str(pool["in_use"]),
        str(pool["hits"]),
        f"{sum(misses.values())}" + (f" ({why})" if why else ""),
        f"{_ms(claim['p50_ms'])}/{_ms(claim['p95_ms'])} ms",
        f"{_ms(pool['refill']['p50_ms'])} ms",
    )


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"


def _state(pool: dict[str, Any]) -> str:
    if pool["failure"] is not None:
        return f"cannot be filled: {' '.join(pool['failure'].split())[:80]}"
    if pool["wanted"] == 0 and pool["schedule"] is not None:
        return "out of schedule"
    return "full" if pool["ready"] >= pool["wanted"] else "filling"
