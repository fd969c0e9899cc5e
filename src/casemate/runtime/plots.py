"""Figures of matplotlib in a context: shown as PNG at `plt.show()` and at a cell's end, then closed."""

import io
import sys
from typing import Any, Callable, List, Set

_shown_as_result: Set[int] = set()  # of the current cell


def is_figure(value: Any) -> bool:
    module = sys.modules.get("matplotlib.figure")
    return module is not None and isinstance(value, module.Figure)


def as_png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    look = {"facecolor": figure.get_facecolor(), "edgecolor": figure.get_edgecolor(), "dpi": figure.dpi}
    if not figure.canvas.is_saving():
        figure.canvas.print_figure(buffer, format="png", bbox_inches="tight", **look)
    _shown_as_result.add(id(figure))
    return buffer.getvalue()


def take_over(display: Callable[[Any], None]) -> Callable[[Any], None]:
    """What to do with `matplotlib.pyplot` when it is imported: its `show` displays here."""

    def adapt(pyplot: Any) -> None:
        def show(*args: Any, **kwargs: Any) -> None:
            """Display every open figure, and close it."""
            show_open(display)

        pyplot.show = show

    return adapt


def show_open(display: Callable[[Any], None]) -> None:
    """Display and close what is open, but for what was displayed by name since the last time: that is closed only."""
    helpers = sys.modules.get("matplotlib._pylab_helpers")
    if helpers is None or not helpers.Gcf.figs:
        return
    figures: List[Any] = [manager.canvas.figure for _, manager in sorted(helpers.Gcf.figs.items())]
    known = set(_shown_as_result)
    try:
        for figure in figures:
            if id(figure) not in known and (figure.axes or figure.texts or figure.images):
                display(figure)
    finally:
        _shown_as_result.clear()
        helpers.Gcf.destroy_all()
