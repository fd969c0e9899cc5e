"""``casemate setup``: system packages, then the image, then the doctor's verdict. Nothing is done twice."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Protocol

import typer

from casemate import config
from casemate.cli import apt
from casemate.cli.doctor import examine
from casemate.errors import HostError, RequestError


def setup(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and change nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    image: Annotated[str, typer.Option("--image", help="The image to build.")] = "python",
) -> None:
    """Make this host ready: install what is missing, build an image, and say what the doctor finds."""
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
        with _bars() as bars:
            for step in steps:
                bar = bars.add(step.what)
                apt.run(step, bar.tell)
                bar.finish()
        report = examine()
    failing = [check for check in report["checks"] if check["status"] == "fail"]
    if not failing:
        _build(image)
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


def _build(image: str) -> None:
    from casemate.sdk import Client, Images  # late: --dry-run and --help do without HTTP

    with _bars() as bars, Client() as client:
        steps: dict[str, Bar] = {}

        def tell(step: str, message: str, fraction: float | None) -> None:
            if step not in steps:
                for earlier in steps.values():
                    earlier.finish()
                steps[step] = bars.add(step)
            steps[step].tell(message, fraction)

        built = Images(client).build(image, progress=tell)
        for bar in steps.values():
            bar.finish()
    print(f"Image {reference(built)} is ready.")


def reference(image: dict[str, Any]) -> str:
    return f"{image['name']}@{image['version']}"


# ------------------------------------------------------------------------------------------------- progress


class Bar(Protocol):
    def tell(self, message: str, fraction: float | None) -> None: ...

    def finish(self) -> None: ...


class Bars(Protocol):
    def add(self, what: str) -> Bar: ...


class Line:
    """Progress for a log: when something begins, and each word that is new."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._said = ""

    def tell(self, message: str, fraction: float | None) -> None:
        if message != self._said:
            self._said = message
            print(f"  {self._what}: {message}", flush=True)

    def finish(self) -> None:
        """A log needs no last word."""


class Lines:
    def add(self, what: str) -> Bar:
        print(what, flush=True)
        return Line(what)


class RichBar:
    def __init__(self, progress: Any, what: str) -> None:
        self._progress = progress
        self._task = progress.add_task(what, total=None, message="")

    def tell(self, message: str, fraction: float | None) -> None:
        total = None if fraction is None else 1.0
        self._progress.update(self._task, message=message, total=total, completed=fraction or 0.0)

    def finish(self) -> None:
        self._progress.update(self._task, message="", total=1.0, completed=1.0)


class RichBars:
    def __init__(self, progress: Any) -> None:
        self._progress = progress

    def add(self, what: str) -> Bar:
        return RichBar(self._progress, what)


@contextmanager
def _bars() -> Iterator[Bars]:
    """Bars on a terminal, lines elsewhere."""
    if not sys.stdout.isatty():
        yield Lines()
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn  # late: 60 ms most runs save

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TimeElapsedColumn(),
        TextColumn("{task.fields[message]}", markup=False),
    )
    with Progress(*columns) as progress:
        yield RichBars(progress)
