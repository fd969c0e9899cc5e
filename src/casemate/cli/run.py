"""``casemate run``: a fresh sandbox for one command, gone afterwards also when we are killed."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from casemate.cli import options
from casemate.cli.options import HOME, Put

if TYPE_CHECKING:
    from casemate.sdk import Sandbox


def run(
    ctx: typer.Context,
    words: Annotated[list[str], typer.Argument(metavar="SCRIPT [ARGS]... | -- CMD [ARGS]...", show_default=False)],
    image: Annotated[str, typer.Option("--image", help="What it starts from.")] = "python",
    timeout_s: Annotated[float | None, typer.Option("--timeout", metavar="S", help="Kill it after S seconds.")] = None,
    memory_mib: Annotated[int | None, typer.Option("--memory", metavar="MIB", help="The guest's memory.")] = None,
    vcpus: Annotated[int | None, typer.Option("--vcpus", metavar="N", help="The guest's processors.")] = None,
    disk_mib: Annotated[int | None, typer.Option("--disk", metavar="MIB", help="Its writable disk.")] = None,
    build: Annotated[bool, typer.Option("--build/--no-build", help="Build a snapshot that is missing.")] = True,
    env: Annotated[list[str] | None, typer.Option("--env", metavar="K=V", help="Set a variable; K: pass ours.")] = None,
    put: Annotated[list[str] | None, typer.Option("--put", metavar="HOST:GUEST", help="Copy a file in.")] = None,
    get: Annotated[list[str] | None, typer.Option("--get", metavar="GUEST:HOST", help="Copy a file out.")] = None,
    cold: Annotated[bool, typer.Option("--cold", help="A new python3, nothing imported yet.")] = False,
    timings: Annotated[bool, typer.Option("--timings", help="Say on stderr what starting took.")] = False,
) -> None:
    """Run a script or a command in a fresh sandbox.

    A Python script, or after -- any command; the sandbox is gone afterwards.
    Its output streams, its input is ours, its exit status becomes ours: 128+n for a signal, 124 for a time-out,
    137 when out of memory. Guest paths are relative to /home/user. A script runs in a copy of an interpreter
    that has numpy, pandas and matplotlib loaded.

    Example:
      casemate run --put data.csv:data.csv --get chart.png:chart.png plot.py data.csv
      casemate run --timeout 10 -- sh -c 'uname -a; id'
    """
    as_command = is_command(ctx.obj or [], words)
    puts = [options.put_of(word) for word in put or []]
    gets = [options.get_of(word) for word in get or []]
    argv, script = list(words), None
    if not as_command:
        host = options.readable(Path(words[0]))
        script = argv[0] = f"{HOME}/{host.name}"
        puts.append(Put(host, script))
    variables = options.env_of(env or [])

    from casemate.cli import attach, ferry
    from casemate.cli.progress import first_use
    from casemate.sdk import Client, Sandbox

    with Client() as client:
        if timings:
            client.health()  # a daemon that has to be started first is not what is timed
        began = time.perf_counter()
        with first_use() as tell:
            created = Sandbox.create(
                image,
                memory_mib=memory_mib,
                vcpus=vcpus,
                disk_mib=disk_mib,
                env=variables,
                idle_timeout_s=None,  # it lives as long as we do
                attached=True,
                build=build,
                progress=tell,
                client=client,
            )
        with created as sandbox:
            if timings:
                sandbox.commands.run(["/bin/true"], check=True)
                _print_timings(sandbox, (time.perf_counter() - began) * 1000)
            ferry.put_all(sandbox, puts)
            feed = attach.has_input()
            started = sandbox.commands.start(argv, script=script, cold=cold, timeout_s=timeout_s, stdin=feed)
            with started as running:
                status = attach.follow(running, feed=feed)
            ferry.get_all(sandbox, gets, failed=status != 0)
    raise typer.Exit(status)


def is_command(typed: Sequence[str], words: Sequence[str]) -> bool:
    """Whether a ``--`` stood before *words*, the end of what was typed; parsing has removed it."""
    at = len(typed) - len(words) - 1
    return at > 0 and typed[at] == "--"


def _print_timings(sandbox: Sandbox, first_exec_ms: float) -> None:
    info = sandbox.info
    rows = {
        "isolation": f"{info.isolation} ({info.accelerator})",
        "restore": _ms(info.timings.restore_ms),
        "first answer": _ms(info.timings.first_answer_ms),
        "first exec": f"{_ms(first_exec_ms)} (/bin/true: from the create request to its exit status here)",
    }
    for name, value in rows.items():
        print(f"{name + ':':14}{value}", file=sys.stderr)


def _ms(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.0f} ms"
