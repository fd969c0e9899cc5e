"""``casemate vmm``: install Firecracker, list the VMMs there are. In a process of its own; needs no daemon."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from casemate.cli.progress import open_bars
from casemate.cli.table import mib, print_table
from casemate.errors import CasemateError, HostError, from_json

app = typer.Typer(help="What machines run under: install Firecracker, list what is there.", rich_markup_mode=None)
HEAD = ("VMM", "VERSION", "BUILD", "STATE", "SIZE")
JSON = typer.Option("--json", help="Print one JSON object.")
DIGITS = 12  # of a build's digest


class Installable(StrEnum):
    FIRECRACKER = "firecracker"


def install(
    vmm: Annotated[Installable, typer.Argument(metavar="firecracker", help="QEMU comes with casemate setup.")],
    source: Annotated[
        Path | None,
        typer.Option("--from", metavar="FILE", help="Not from the network: a release's archive, or a folder."),
    ] = None,
    allow_known_bad: Annotated[
        bool, typer.Option("--allow-known-bad", help="Also a version with known defects; for tests.")
    ] = False,
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """Install Firecracker into the home.

    The release that this Casemate was tried with, from its publisher, by its SHA-256; or the one in a file. A daemon
    that runs goes on with what it has.

    Example:
      casemate vmm install firecracker --from firecracker-v1.15.1-x86_64.tgz
    """
    words = [f"--from={source}"] * (source is not None) + ["--allow-known-bad"] * allow_known_bad
    if as_json:
        print(json.dumps(_run("install", vmm.value, *words)))
        return
    with open_bars() as bars:
        bar = bars.add("Installing Firecracker")
        found = _run("install", vmm.value, *words, tell=lambda line: bar.tell(line, None))
        bar.finish()
    print(f"Firecracker {found['version']} is installed (build {found['sha256'][:DIGITS]}).")
    print("casemate doctor says what machines run under here; casemate daemon restart makes it so.")


def ls(as_json: Annotated[bool, JSON] = False) -> None:
    """List the builds of VMMs that this home has.

    Those that are not installed any more are kept for what was made with them.

    Example:
      casemate vmm ls
    """
    found = _run("ls")
    if as_json:
        print(json.dumps(found))
        return
    print_table(HEAD, [_row(build) for build in found["builds"]])


def _row(build: dict[str, Any]) -> tuple[str, ...]:
    state = "installed" if build["installed"] else "kept"
    return (build["vmm"], build["version"] or "-", build["sha256"][:DIGITS], state, mib(build["size_bytes"]))


def _run(*words: str, tell: Callable[[str], None] | None = None) -> dict[str, Any]:
    """What the host's side says in the end. *tell* hears how it goes. Raises what it raised."""
    argv = [sys.executable, "-m", "casemate.vmm", *words, "--json"]
    last: dict[str, Any] = {}
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        for line in process.stdout:
            last = json.loads(line)
            if tell is not None and "say" in last:
                tell(last["say"])
        wrong = process.stderr.read()
    if process.returncode != 0:
        raise _said(wrong)
    return last


def _said(text: str) -> CasemateError:
    last = (text.strip().splitlines() or [""])[-1]
    try:
        return from_json(json.loads(last))
    except ValueError:
        return HostError("the VMM was not installed", evidence={"last_lines": text[-2000:]})


for verb in (install, ls):
    app.command(help=(verb.__doc__ or "").replace("    Example", "    \b\n    Example"))(verb)
