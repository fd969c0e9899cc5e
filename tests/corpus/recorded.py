"""What is kept of the plain half in ``examples.json``: which examples, and a digest of what each cell shows.

Written by ``python -m tests.corpus record``, read by the tests; texts of others are in neither it nor the tree.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tests.corpus.normal import digest, normal
from tests.corpus.reference import Plain
from tests.corpus.selection import Example, find

FILE = Path(__file__).with_name("examples.json")
CAUSES = Path(__file__).with_name("causes.json")
NEED_PACKAGES: frozenset[str] = frozenset()  # of matplotlib's and pandas': what the image alone does not have


@dataclass(frozen=True, slots=True)
class Recorded:
    """*versions* of the libraries, the *examples* with a digest for each cell, the *left_out* with the rule's words."""

    versions: dict[str, str]
    examples: dict[str, list[str]]
    left_out: dict[str, str]


def read() -> Recorded:
    body = json.loads(FILE.read_text())
    examples = {name: digests.split() for name, digests in body["examples"].items()}
    return Recorded(body["versions"], examples, body["left_out"])


def write(versions: dict[str, str], runs: Iterable[Plain], left_out: dict[str, str]) -> None:
    examples = {run.name: " ".join(digest(normal(cell)) for cell in run.outputs) for run in runs}
    body = {"versions": versions, "examples": examples, "left_out": left_out}
    FILE.write_text(json.dumps(body, indent=1, sort_keys=True) + "\n")


def causes() -> dict[str, str]:
    """Of cells that differ, ``example#number``: why."""
    found: dict[str, str] = {}
    for cause, cells in json.loads(CAUSES.read_text()).items():
        found |= dict.fromkeys(cells, cause)
    return found


def place(example: str, number: int) -> str:
    return f"{example}#{number}"


def split(names: Iterable[str]) -> dict[str, list[str]]:
    """Package → paths."""
    found: dict[str, list[str]] = {}
    for name in names:
        package, _, path = name.partition(":")
        found.setdefault(package, []).append(path)
    return found


def examples_of(recorded: Recorded, words: Iterable[str] = ()) -> list[Example]:
    """Those recorded, or those of them whose names have one of *words*, as the sdists have them. Raises Unfetched."""
    wanted = list(words)
    names = [name for name in recorded.examples if not wanted or any(word in name for word in wanted)]
    return [example for package, paths in split(names).items() for example in find(package, paths)]
