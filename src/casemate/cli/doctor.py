"""``casemate doctor``: the posture room, in a process of its own, so that it needs no daemon."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Annotated, Any

import typer

from casemate.errors import CasemateError, HostError, from_json

LIMIT_S = 60.0
USABLE, NOT_USABLE = 0, 1


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Measure KVM again, whatever is known.")] = False,
) -> None:
    """Examine this host: what is missing, how safe it is, and what to do.

    Exit status 1 when a check failed.

    Example:
      casemate doctor --json | python3 -m json.tool
    """
    flags = ["--json"] * as_json + ["--fresh"] * fresh
    try:
        done = subprocess.run(_argv(*flags), timeout=LIMIT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise _overrun() from error
    raise typer.Exit(done.returncode)


def examine() -> dict[str, Any]:
    """What ``casemate doctor --json`` prints. Raises what kept it from looking (InvalidSpec), HostError."""
    try:
        done = subprocess.run(_argv("--json"), timeout=LIMIT_S, check=False, capture_output=True, text=True)
    except subprocess.TimeoutExpired as error:
        raise _overrun() from error
    if done.returncode in (USABLE, NOT_USABLE):
        report: dict[str, Any] = json.loads(done.stdout)
        return report
    raise _said(done.stderr)


def _argv(*flags: str) -> list[str]:
    return [sys.executable, "-m", "casemate.posture", *flags]


def _said(text: str) -> CasemateError:
    last = (text.strip().splitlines() or [""])[-1]
    try:
        return from_json(json.loads(last))
    except ValueError:
        return HostError("the doctor could not look at this host", evidence={"last_lines": text[-2000:]})


def _overrun() -> HostError:
    return HostError(f"the doctor did not finish within {LIMIT_S:g} s", hint="run: python -m casemate.posture")
