"""Goes once through what first cells do, in the zygote's root: what that imports, caches and compiles is every child's.

It runs nothing of the user's. A library that fails here will fail in front of the user.
"""

import sys
import warnings
from typing import Any

from . import plots
from .engines import Limits
from .formats import Printers, bundle


def try_out() -> None:
    for act in (_table, _figure):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                act()
            except Exception:  # noqa: S112
                continue  # for the user to see


def _table() -> None:
    pandas: Any = sys.modules.get("pandas")
    if pandas is not None:
        frame = pandas.DataFrame({"x": [1.0, 2.0, None], "n": [1, 2, 3], "t": ["a", "b", "c"]})
        for value in (frame, frame.describe(), frame["x"]):
            bundle(value, Limits(), Printers())


def _figure() -> None:
    pyplot: Any = sys.modules.get("matplotlib.pyplot")
    if pyplot is not None:
        figure, axes = pyplot.subplots()
        try:
            axes.plot([1, 2, 3], label="one")
            axes.set_title("title")
            axes.legend()
            plots.as_png(figure)
        finally:
            pyplot.close(figure)
            plots.forget()
