"""Figures of matplotlib in a context: shown as PNG at `plt.show()` and at a cell's end, then closed."""

import functools
import io
import math
import sys
from typing import Any, Callable, List, Optional, Set

CHART = "application/vnd.casemate.chart+json"
BOXES = "_casemate_boxes"  # where an axes has what was told to Axes.bxp, and what that has drawn
_shown_as_result: Set[int] = set()  # of the current cell
_at_end: Set[int] = set()  # shown because the cell has ended


def is_figure(value: Any) -> bool:
    module = sys.modules.get("matplotlib.figure")
    return module is not None and isinstance(value, module.Figure)


def as_png(figure: Any) -> Optional[bytes]:
    """The figure without the empty space around it, as `bbox_inches="tight"` has it; None where there is only that."""
    if not (figure.axes or figure.lines or figure.texts or figure.images):
        return None
    buffer = io.BytesIO()
    laid_out = _is_laid_out(figure)
    if laid_out and id(figure) in _at_end and hasattr(figure, "draw_without_rendering"):
        figure.draw_without_rendering()  # Jupyter has drawn it by now, and it is laid out anew at each drawing
    if laid_out or not _write_cropped(figure, buffer):
        look = {"facecolor": figure.get_facecolor(), "edgecolor": figure.get_edgecolor(), "dpi": figure.dpi}
        figure.canvas.print_figure(buffer, format="png", bbox_inches="tight", **look)
    _shown_as_result.add(id(figure))
    return buffer.getvalue()


def forget() -> None:
    """Nothing was displayed."""
    _shown_as_result.clear()


def _is_laid_out(figure: Any) -> bool:
    """By matplotlib itself (tight_layout=True, constrained layouts); each drawing may move things by a pixel."""
    names = ("get_layout_engine", "get_constrained_layout", "get_tight_layout")  # the first: since matplotlib 3.6
    found = [getattr(figure, name, None) for name in names]
    return bool(found[0]()) if found[0] else any(ask() for ask in found if ask)


def _write_cropped(figure: Any, buffer: io.BytesIO) -> bool:
    """Drawn once and cropped, where matplotlib would draw it twice; False if something lies outside of the figure."""
    image_module: Any = sys.modules.get("PIL.Image")
    if image_module is None or not hasattr(figure.canvas, "buffer_rgba"):
        return False
    figure.canvas.draw()
    pixels = figure.canvas.buffer_rgba()
    height, width = pixels.shape[:2]
    pad = sys.modules["matplotlib"].rcParams["savefig.pad_inches"]
    box = figure.get_tightbbox(figure.canvas.get_renderer()).padded(pad)
    left, bottom, right, top = (edge * figure.dpi for edge in box.extents)
    if not (0 <= left < right <= width and 0 <= bottom < top <= height):
        return False
    picture = image_module.frombuffer("RGBA", (width, height), pixels, "raw", "RGBA", 0, 1)
    # matplotlib's own canvas would have just these whole pixels, wherever they begin.
    wide, high = (int(length * figure.dpi) for length in box.size)
    x, y = math.floor(left), math.floor(height - top)
    picture.crop((x, y, x + wide, y + high)).save(buffer, format="png", dpi=(figure.dpi, figure.dpi))
    return True


def take_over(display: Callable[[Any], None]) -> Callable[[Any], None]:
    """What to do with `matplotlib.pyplot` when it is imported: its `show` displays here."""

    def adapt(pyplot: Any) -> None:
        def show(*args: Any, **kwargs: Any) -> None:
            """Display every open figure, and close it."""
            show_open(display)

        pyplot.show = show

    return adapt


def remember_boxes(module: Any) -> None:
    """What to do with `matplotlib.axes` when it is imported: what box plots are drawn from stays with their axes.

    Their lines alone do not say which is the mean.
    """
    draw = module.Axes.bxp

    @functools.wraps(draw)
    def bxp(self: Any, bxpstats: Any, *args: Any, **kwargs: Any) -> Any:
        stats = list(bxpstats)
        made = draw(self, stats, *args, **kwargs)
        vars(self).setdefault(BOXES, []).append((stats, made))
        return made

    module.Axes.bxp = bxp


def show_open(display: Callable[[Any], None], at_end: bool = False) -> None:
    """Display and close what is open, but for what was displayed by name since the last time: that is closed only.

    *at_end*: of a cell.
    """
    helpers = sys.modules.get("matplotlib._pylab_helpers")
    if helpers is None or not helpers.Gcf.figs:
        return
    figures: List[Any] = [manager.canvas.figure for manager in helpers.Gcf.figs.values()]  # the active one last
    known = set(_shown_as_result)
    if at_end:
        _at_end.update(map(id, figures))
    try:
        for figure in figures:
            if id(figure) not in known:
                display(figure)
    finally:
        _shown_as_result.clear()
        _at_end.clear()
        helpers.Gcf.destroy_all()
