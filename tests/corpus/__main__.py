"""``python -m tests.corpus record|plain|ours|table [WORD…]``: what ``make corpus`` does.

Its result is docs/corpus.md.
record   run every example that the rules leave by a plain Jupyter, and write examples.json
plain    run the recorded ones by a plain Jupyter
ours     run them in sandboxes, of CASEMATE_URL or of the user's daemon
table    compare; 1 where a cell differs without a cause that is listed, or more than 5 % of them differ

Each run is kept below the cache, and not repeated there unless the first word is ``--again``. Others choose by name.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from tests.corpus import comparison, ours, recorded, reference, sdists, selection
from tests.corpus.reference import Plain
from tests.corpus.selection import Example

from casemate.config import default_home

PIECE = 8


def main(words: list[str]) -> int:
    again = "--again" in words
    verb, *names = [word for word in words if word != "--again"] or [""]
    match verb:
        case "record":
            record(again=again)
        case "plain":
            for _ in plain(recorded.examples_of(recorded.read(), names), again=again):
                pass
        case "ours":
            run_ours(recorded.examples_of(recorded.read(), names), again=again)
        case "table":
            table = comparison.compare(names)
            print(comparison.report(table))
            return 0 if table.holds else 1
        case _:
            print(__doc__)
            return 2
    return 0


def record(*, again: bool) -> None:
    left_out: dict[str, str] = {}
    wanted = []
    for example in selection.candidates():
        if (reason := selection.why_not(example)) is None:
            wanted.append(example)
        else:
            left_out[example.name] = reason
    runs = []
    for run in plain(wanted, again=again):
        if run.wrong is not None:
            left_out[run.name] = f"a plain Jupyter has no whole run of it: {run.wrong}"
        elif run.seconds > selection.PLAIN_S:
            left_out[run.name] = f"takes a plain kernel more than {selection.PLAIN_S:g} s of a processor"
        else:
            runs.append(run)
    versions = json.loads((comparison.folder("plain") / "versions.json").read_text())
    recorded.write(versions, runs, left_out)


def plain(examples: list[Example], *, again: bool) -> Iterator[Plain]:
    """The runs of *examples*, in their order; those that are at hand are taken from there."""
    missing = [example for example in examples if again or not comparison.path("plain", example.name).exists()]
    for start in range(0, len(missing), PIECE):
        versions, runs = reference.run_plainly(_root(), missing[start : start + PIECE])
        (comparison.folder("plain") / "versions.json").write_text(json.dumps(versions))
        for run in runs:
            comparison.path("plain", run.name).write_text(json.dumps(asdict(run)))
            print(f"plain  {run.seconds:6.2f} s  {run.name}  {run.wrong or ''}", flush=True)
    for example in examples:
        yield Plain(**json.loads(comparison.path("plain", example.name).read_text()))


def run_ours(examples: list[Example], *, again: bool) -> None:
    missing = [example for example in examples if again or not comparison.path("ours", example.name).exists()]
    if missing and not ours.has_image():
        ours.make_image()
    for example in missing:
        began = time.monotonic()
        outputs, wrong = ours.run(example)
        run = Plain(example.name, round(time.monotonic() - began, 2), wrong, outputs)
        comparison.path("ours", run.name).write_text(json.dumps(asdict(run)))
        print(f"ours   {run.seconds:6.2f} s  {run.name}  {run.wrong or ''}", flush=True)


def _root() -> Path:
    """The root disk of the image ``python`` that setup has built, unpacked."""
    artifacts = default_home() / "artifacts"
    digest = json.loads((artifacts / ".index" / "root-python.json").read_text())["root"]
    return reference.root_of(artifacts / digest)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except sdists.Unfetched as error:
        sys.exit(f"error: {error}")
