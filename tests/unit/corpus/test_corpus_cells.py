"""Cells out of the four forms of examples; what is compared of an output."""

from __future__ import annotations

import base64
import json
import struct

import pytest
from tests.corpus import recorded, selection
from tests.corpus.cells import cells_of
from tests.corpus.normal import digest, frames, normal, normal_text
from tests.corpus.selection import Example, why_not

GALLERY = '''"""
=====
Title
=====
"""
import numpy as np  # not a text

# a comment of the code
x = 1

# %%
# A text that is
# several lines long

y = 2
##############################################################################
# Only a text
# %%
# Another
"%% is code here"
'''
DIRECTIVES = """
Title

.. ipython:: python
   :okwarning:

   x = 1
   if x:
       y = 2

   @savefig some.png
   plot(x)

Words.

  .. ipython:: python

     z = 3
  .. ipython:: python

     # only a comment
"""
DOCTESTS = """
>>> x = 1
>>> x
1
>>> for n in range(2):  # doctest: +SKIP
...     print(n)
0
1

Words.

    >>> y = 2
"""


def test_a_gallery_s_blocks() -> None:
    assert cells_of("a/plot.py", GALLERY) == [
        "import numpy as np  # not a text\n\n# a comment of the code\nx = 1",
        "y = 2",
        '"%% is code here"',
    ]


def test_a_notebook_s_code_cells() -> None:
    cells = [
        {"cell_type": "markdown", "source": "no"},
        {"cell_type": "code", "source": ["a\n", "b"]},
        {"cell_type": "code", "source": "# nothing"},
    ]
    assert cells_of("a.ipynb", json.dumps({"cells": cells})) == ["a\nb"]


def test_directives_of_ipython() -> None:
    assert cells_of("a.rst", DIRECTIVES) == ["x = 1\nif x:\n    y = 2\n\nplot(x)", "z = 3"]


def test_doctests_with_words_between() -> None:
    assert cells_of("a.rst", DOCTESTS) == ["x = 1\nx\nfor n in range(2):  \n    print(n)", "y = 2"]


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import numpy.linalg, os", None),
        ("from seaborn import plot", "imports seaborn"),
        ("%timeit 1\nimport numpy", None),
        ("not python at all\nimport dask", "imports dask"),
        ("x = fetch_20newsgroups()", "reads from the network: fetch_20newsgroups("),
        ("plt.pause(1)", "wants a window: plt.pause("),
    ],
)
def test_rules(code: str, reason: str | None) -> None:
    assert why_not(Example("package", "path", (code,))) == reason


@pytest.mark.parametrize(
    ("plain", "ours"),
    [
        ("/tmp/ipykernel_12/34.py:3: UserWarning", "<cell 7>:3: UserWarning"),
        ("bad (34.py, line 1)", "bad (<cell 2>, line 1)"),
        ("<f at 0x7f00aa00>", "<f at 0x7f99bb99>"),
        ("took 1.25 s", "took 903 ms"),
        ("10%\r50%\rdone\n", "20%\rdone\n"),
        ("\x1b[0;31mred\x1b[0m", "red"),
    ],
)
def test_what_no_two_runs_have_in_common(plain: str, ours: str) -> None:
    assert normal_text(plain) == normal_text(ours)


@pytest.mark.parametrize(("one", "other"), [("1.25", "1.26"), ("5 rows", "6 rows"), ("a\r\nb", "b"), ("0x1f", "0x2f")])
def test_all_else_counts(one: str, other: str) -> None:
    assert normal_text(one) != normal_text(other)


def test_the_places_of_an_error_in_both_forms() -> None:
    plain = [
        "ValueError   Traceback (most recent call last)",
        "Cell \x1b[0;32mIn [2], line 2\x1b[0m\n      1 x = 1\n----> 2 f()",
        "File \x1b[0;32m/usr/lib/python3/dist-packages/a/b.py:51, in f(self)\x1b[0m\n     50 pass",
        "ValueError: no",
    ]
    ours = ["Traceback (most recent call last):", '  File "<cell 2>", line 2, in <module>', "    f()"]
    ours += ['  File "/usr/lib/python3/dist-packages/a/b.py", line 51, in f', "ValueError: no"]
    assert frames(plain) == frames(ours) == ["<cell>:2", "a/b.py:51"]


def picture(width: int, height: int) -> dict[str, object]:
    head = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + struct.pack(">II", width, height)
    data = {"image/png": base64.b64encode(head).decode() + "\n", "text/plain": ["<Figure", ">"]}
    return {"output_type": "display_data", "data": data, "metadata": {}}


def test_pictures_by_size_and_streams_joined() -> None:
    def stream(name: str, text: str) -> dict[str, object]:
        return {"output_type": "stream", "name": name, "text": text}

    split = [stream("stdout", "a"), stream("stderr", "w"), stream("stdout", "b"), picture(3, 4), stream("stdout", "c")]
    joined = [stream("stderr", "w"), stream("stdout", "ab"), picture(3, 4), stream("stdout", "c")]
    assert normal(split) == normal(joined)
    assert normal(split)[2] == ["display_data", None, {"image/png": "3x4", "text/plain": "<Figure>"}]
    assert digest(normal(split)) == digest(normal(joined)) != digest(normal([*joined[:2], picture(3, 5), joined[3]]))


def test_what_is_recorded_is_enough_and_has_its_causes() -> None:
    kept = recorded.read()
    places = {recorded.place(name, n) for name, digests in kept.examples.items() for n in range(len(digests))}
    assert set(recorded.causes()) <= places
    assert len(recorded.causes()) <= 0.05 * len(places)
    assert len(kept.examples) >= 30
    assert {name.partition(":")[0] for name in kept.examples} == set(selection.FOLDERS)
    assert not set(kept.examples) & set(kept.left_out)
    assert set(kept.examples) >= recorded.NEED_PACKAGES
