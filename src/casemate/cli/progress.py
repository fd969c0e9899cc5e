"""Progress for people: bars on a terminal, lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

LOG_EVERY_S = 5.0
Tell = Callable[[str, str, float | None], None]


def build_image(name: str, *, force: bool = False, quiet: bool = False) -> dict[str, Any]:
    """Have the daemon build an image, unless it is built, and show how it goes. Raises what the SDK raises."""
    from casemate.sdk import Client, Images  # late: --dry-run and --help do without HTTP

    with Client() as client:
        if quiet:
            return Images(client).build(name, force=force)
        with open_bars() as bars:
            steps = Steps(bars)
            built = Images(client).build(name, force=force, progress=steps.tell)
            steps.finish()
            return built


@contextmanager
def first_use() -> Iterator[Tell | None]:
    """How far the snapshot is that a create has to wait for, on stderr if that is a terminal; most have none to tell.

    Stdout belongs to the guest.
    """
    if not sys.stderr.isatty():
        yield None
        return
    with ExitStack() as opened:
        steps: list[Steps] = []

        def tell(step: str, message: str, fraction: float | None) -> None:
            if not steps:  # the first word: it will take seconds
                steps.append(Steps(opened.enter_context(rich_bars(stderr=True, transient=True))))
            steps[0].tell(step, message, fraction)

        yield tell


class Steps:
    """A bar for each step, the last one under way."""

    def __init__(self, bars: Bars) -> None:
        self._bars = bars
        self._begun: dict[str, Bar] = {}

    def tell(self, step: str, message: str, fraction: float | None) -> None:
        if step not in self._begun:
            self.finish()
            self._begun[step] = self._bars.add(step)
        self._begun[step].tell(message, fraction)

    def finish(self) -> None:
        for bar in self._begun.values():
            bar.finish()


class Bar(Protocol):
    def tell(self, message: str, fraction: float | None) -> None: ...

    def finish(self) -> None: ...


class Bars(Protocol):
    def add(self, what: str) -> Bar: ...


class Line:
    """Progress for a log: when something begins; then what is new, but not more than a line in 5 s."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._said = ""
        self._said_at = time.monotonic()

    def tell(self, message: str, fraction: float | None) -> None:
        if message and message != self._said and time.monotonic() - self._said_at >= LOG_EVERY_S:
            self._said, self._said_at = message, time.monotonic()
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
def open_bars() -> Iterator[Bars]:
    """Bars on a terminal, lines elsewhere."""
    if not sys.stdout.isatty():
        yield Lines()
        return
    with rich_bars() as bars:
        yield bars


@contextmanager
def rich_bars(*, stderr: bool = False, transient: bool = False) -> Iterator[Bars]:
    from rich.console import Console  # late: 60 ms most runs save
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TimeElapsedColumn(),
        TextColumn("{task.fields[message]}", markup=False),
    )
    with Progress(*columns, console=Console(stderr=stderr), transient=transient) as progress:  # heeds NO_COLOR
        yield RichBars(progress)
