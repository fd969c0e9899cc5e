"""Progress for people: bars on a terminal, lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol


def build_image(name: str, *, force: bool = False, quiet: bool = False) -> dict[str, Any]:
    """Have the daemon build an image, unless it is built, and show how it goes. Raises what the SDK raises."""
    from casemate.sdk import Client, Images  # late: --dry-run and --help do without HTTP

    with Client() as client:
        if quiet:
            return Images(client).build(name, force=force)
        with open_bars() as bars:
            steps: dict[str, Bar] = {}

            def tell(step: str, message: str, fraction: float | None) -> None:
                if step not in steps:
                    for earlier in steps.values():
                        earlier.finish()
                    steps[step] = bars.add(step)
                steps[step].tell(message, fraction)

            built = Images(client).build(name, force=force, progress=tell)
            for bar in steps.values():
                bar.finish()
            return built


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
def open_bars() -> Iterator[Bars]:
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
