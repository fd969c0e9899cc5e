"""Which examples: all of these folders, but for those that break a rule here. None is picked by hand."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from tests.corpus import cells, sdists

FOLDERS = {
    "matplotlib": ("examples/pie_and_polar_charts/", "examples/statistics/", "tutorials/introductory/"),
    "pandas": ("doc/source/user_guide/",),
    "scikit-learn": ("examples/datasets/", "examples/svm/"),
    "scipy": ("doc/source/tutorial/",),
}
FORMS = {"matplotlib": (".py",), "pandas": (".rst", ".ipynb"), "scikit-learn": (".py",), "scipy": (".rst",)}
THERE = {"IPython", "PIL", "cycler", "dateutil", "jinja2", "joblib", "matplotlib", "mpl_toolkits", "numpy", "pandas"}
THERE |= {"pytz", "scipy", "sklearn"}
# Runs before the cells of every example, in both halves, and isn't compared: else what is drawn unseeded would differ.
SEED = """import random, numpy
random.seed(8)
numpy.random.seed(8)
numpy.random.default_rng = lambda seed=8, made=numpy.random.default_rng: made(8 if seed is None else seed)
del random, numpy"""
PLAIN_S = 8.0  # of a processor, the kernel's start included: an emulated one takes ten times that and more
NETWORK = re.compile(r"\burllib|\brequests\b|\bfetch_\w+\(|read_html\(|scipy\.(datasets|misc)|[\"'](https?|s3)://")
ANIMATED = re.compile(r"\bFuncAnimation|plt\.pause\(|ginput\(|waitforbuttonpress")


@dataclass(frozen=True, slots=True)
class Example:
    package: str
    path: str
    cells: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.package}:{self.path}"


def candidates(packages: tuple[str, ...] = tuple(FOLDERS)) -> Iterator[Example]:
    """All with code in the folders, by name. Raises Unfetched."""
    for package in packages:
        for path, content in sorted(sdists.files(package, FOLDERS[package]).items()):
            if path.endswith(FORMS[package]) and (found := cells.cells_of(path, content.decode())):
                yield Example(package, path, tuple(found))


def find(package: str, paths: list[str]) -> list[Example]:
    """These ones of *package*. Raises Unfetched."""
    found = sdists.files(package, paths)
    return [Example(package, path, tuple(cells.cells_of(path, found[path].decode()))) for path in paths]


def why_not(example: Example) -> str | None:
    """By which rule it is left out, as far as its text tells; None: by none."""
    text = "\n".join(example.cells)
    if foreign := sorted(_imported(example.cells) - THERE - sys.stdlib_module_names):
        return f"imports {', '.join(foreign)}"
    if match := NETWORK.search(text):
        return f"reads from the network: {match[0]}"
    if match := ANIMATED.search(text):
        return f"wants a window: {match[0]}"
    return None


def _imported(found: tuple[str, ...]) -> set[str]:
    names: set[str] = set()
    for cell in found:
        try:
            tree = ast.parse("\n".join(line for line in cell.splitlines() if not line.lstrip().startswith(("%", "!"))))
        except SyntaxError:  # an example of one, or of another language: it runs, and fails in both
            names |= set(re.findall(r"^\s*(?:import|from) (\w+)", cell, re.MULTILINE))
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names.add(node.module.partition(".")[0])
    return names
