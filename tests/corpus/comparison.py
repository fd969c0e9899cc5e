"""Both halves side by side: which cells are equal, and of the others which have a cause that is known."""

from __future__ import annotations

import difflib
import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.corpus import recorded, sdists
from tests.corpus.normal import Cell, normal

WANTED = 0.95
LINES = 24


@dataclass(slots=True)
class Table:
    """Cells by package, and the *differing* ones with how they differ."""

    examples: Counter[str] = field(default_factory=Counter)
    cells: Counter[str] = field(default_factory=Counter)
    equal: Counter[str] = field(default_factory=Counter)
    pictures: Counter[str] = field(default_factory=Counter)
    differing: dict[str, str] = field(default_factory=dict)
    not_run: list[str] = field(default_factory=list)

    @property
    def unexplained(self) -> list[str]:
        return sorted(set(self.differing) - set(recorded.causes()))

    @property
    def holds(self) -> bool:
        return not (self.unexplained or self.not_run) and self.equal.total() >= WANTED * self.cells.total()


def folder(half: str) -> Path:
    """Where the runs of that half are kept."""
    found = sdists.cache() / half
    found.mkdir(exist_ok=True)
    return found


def path(half: str, name: str) -> Path:
    return folder(half) / f"{name.replace('/', '_')}.json"


def compare(words: list[str]) -> Table:
    """The recorded examples, or those whose names have one of *words*."""
    table = Table()
    for name in recorded.read().examples:
        if words and not any(word in name for word in words):
            continue
        halves = [path(half, name) for half in ("plain", "ours")]
        if not all(half.exists() for half in halves):
            table.not_run.append(name)
            continue
        plain, ours = (json.loads(half.read_text()) for half in halves)
        package = name.partition(":")[0]
        table.examples[package] += 1
        if plain["wrong"] or ours["wrong"]:
            table.not_run.append(f"{name}: {plain['wrong'] or ours['wrong']}")
        for number, (theirs, mine) in enumerate(zip(plain["outputs"], ours["outputs"], strict=True)):
            left, right = normal(theirs), normal(mine)
            table.cells[package] += 1
            table.pictures[package] += _pictures(left)
            if left == right:
                table.equal[package] += 1
            else:
                table.differing[recorded.place(name, number)] = "\n".join(_difference(left, right))
    return table


def report(table: Table) -> str:
    """In Markdown, and below it what has no cause."""
    causes = recorded.causes()
    lines = ["| package | examples | cells | equal | differing | pictures |", "|---|---|---|---|---|---|"]
    counters = (table.examples, table.cells, table.equal, table.cells - table.equal, table.pictures)
    for package in sorted(table.cells):
        lines.append(f"| {package} | " + " | ".join(str(counter[package]) for counter in counters) + " |")
    lines.append("| all | " + " | ".join(str(counter.total()) for counter in counters) + " |")
    if table.cells:
        lines += ["", f"{100 * table.equal.total() / table.cells.total():.2f} % of the cells are equal."]
    for cause, count in Counter(causes[at] for at in table.differing if at in causes).most_common():
        lines.append(f"* {count}: {cause}")
    lines += [f"not run: {name}" for name in table.not_run]
    lines += [f"{at}\n{table.differing[at]}" for at in table.unexplained]
    return "\n".join(lines)


def _pictures(cell: Cell) -> int:
    return sum("image/png" in output[2] for output in cell if output[0] in ("display_data", "execute_result"))


def _difference(plain: Any, ours: Any) -> list[str]:
    texts = [
        json.dumps(cell, indent=0, ensure_ascii=False, sort_keys=True).replace("\\n", "\n").splitlines()
        for cell in (plain, ours)
    ]
    return [line[:200] for line in difflib.unified_diff(*texts, "plain", "ours", lineterm="", n=1)][:LINES]
