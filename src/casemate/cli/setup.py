"""``casemate setup``: system packages, then the image, then the doctor's verdict. Nothing is done twice."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from casemate import config
from casemate.cli import apt
from casemate.cli.doctor import examine
from casemate.cli.progress import build_image, open_bars
from casemate.errors import HostError, RequestError


def setup(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and change nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    image: Annotated[str, typer.Option("--image", help="The image to build.")] = "python",
) -> None:
    """Make this host ready: install what is missing, build an image, and say what the doctor finds.

    Example:
      casemate setup --dry-run
    """
    if not dry_run:
        _make_home()
    report = examine()
    steps = apt.plan(report["packages"])
    if steps or dry_run:
        _print_plan(steps, image)
    if dry_run:
        return
    if steps:
        apt.check_privilege()
        if not yes:
            _ask()
        with open_bars() as bars:
            for step in steps:
                bar = bars.add(step.what)
                apt.run(step, bar.tell)
                bar.finish()
        report = examine()
    failing = [check for check in report["checks"] if check["status"] == "fail"]
    if not failing:
        built = build_image(image)
        print(f"Image {built['name']}@{built['version']} is ready.")
    print(report["summary"])
    for check in failing:
        print(
            f"  {check['name']}: {check['found']}\n    → {check['hint']}"
            + f"\n    → {check['fix']}" * bool(check["fix"])
        )
    if failing:
        raise HostError(
            f"this host cannot run sandboxes yet: {failing[0]['name']}: {failing[0]['found']}",
            hint=failing[0]["hint"],
        )


def _make_home() -> None:
    """Where the doctor keeps what it measured. Raises HostError when the folder cannot be made."""
    run = config.load().run
    try:
        run.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        run.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise HostError(
            f"{error.filename} cannot be made: {error.strerror}", hint="set CASEMATE_HOME to a folder you can write"
        ) from error


def _print_plan(steps: list[apt.Step], image: str) -> None:
    print("Plan:")
    for step in steps:
        print(f"  - {step.what}\n      # {apt.paste(step)}")
    if not steps:
        print("  - no system package is missing")
    print(f"  - build the image {image}, unless it is built")


def _ask() -> None:
    if not sys.stdin.isatty():
        raise RequestError("nobody is here to agree to this plan", hint="say --yes to carry it out")
    if not typer.confirm("Go on?", default=True):
        raise typer.Abort
