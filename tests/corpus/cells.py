"""The code cells of an example, by the form it has: sphinx-gallery, notebook, IPython directive, doctest."""

from __future__ import annotations

import ast
import doctest
import json
import re
import textwrap

_BLOCK = re.compile(r"^(# ?%%|#{20,}\s*$)")
_DIRECTIVE = re.compile(r"^(\s*)\.\. ipython:: python\s*$")
# What pandas' conf.py has Sphinx put where a page says {{ header }}, but for its folder.
_HEADER = """import numpy as np
import pandas as pd
np.random.seed(123456)
np.set_printoptions(precision=4, suppress=True)
pd.options.display.max_rows = 15"""
_OPTION = re.compile(r"^:\w+:")


def cells_of(path: str, text: str) -> list[str]:
    """Of a ``.py``, an ``.ipynb`` or an ``.rst``; none is empty, or comments only."""
    if path.endswith(".ipynb"):
        found = [_source(cell) for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    elif path.endswith(".py"):
        found = _of_gallery(text)
    elif ".. ipython:: python" in text:
        found = _of_directives(text)
    else:
        found = _of_doctests(text)
    return [cell.strip("\n") for cell in found if _has_code(cell)]


def _source(cell: dict[str, str | list[str]]) -> str:
    return "".join(cell["source"])


def _of_gallery(text: str) -> list[str]:
    """What stands between its texts: the docstring, and comments that begin with ``# %%`` or a line of #."""
    lines = text.splitlines()
    first = ast.parse(text).body[0]
    lines = lines[first.end_lineno :] if ast.get_docstring(ast.parse(text)) is not None else lines
    cells: list[list[str]] = [[]]
    in_text = False
    for line in lines:
        if _BLOCK.match(line):
            cells.append([])
            in_text = True
        elif not (in_text and line.startswith("#")):
            in_text = False
            cells[-1].append(line)
    return ["\n".join(cell) for cell in cells]


def _of_directives(text: str) -> list[str]:
    """Each ``.. ipython:: python`` is a cell, without what speaks to the directive only."""
    lines = text.splitlines()
    cells = [_HEADER] if "{{ header }}" in text else []
    for number, line in enumerate(lines):
        if (match := _DIRECTIVE.match(line)) is None:
            continue
        body = []
        for below in lines[number + 1 :]:
            if below.strip() and len(below) - len(below.lstrip()) <= len(match[1]):
                break
            body.append(below)
        code = textwrap.dedent("\n".join(body)).splitlines()
        cells.append("\n".join(x for x in code if not _OPTION.match(x) and not x.startswith("@")))
    return cells


def _of_doctests(text: str) -> list[str]:
    """Each run of ``>>>`` lines without words between is a cell: what is printed between goes."""
    cells: list[str] = []
    last = None
    for example in doctest.DocTestParser().get_examples(_without_options(text)):
        follows = last is not None and example.lineno == last
        cells[-1:] = [cells[-1] + example.source] if follows else [*cells[-1:], example.source]
        last = example.lineno + example.source.count("\n") + example.want.count("\n")
    return cells


def _without_options(text: str) -> str:
    return re.sub(r"#\s*doctest:.*", "", text)


def _has_code(cell: str) -> bool:
    return any(line.strip() and not line.lstrip().startswith("#") for line in cell.splitlines())
