"""Figures of matplotlib in a context: shown as PNG at `plt.show()` and at a cell's end, then closed."""

import functools
import io
import math
import sys
from typing import Any, Callable, List, Set

BOXES = "_casemate_boxes"  # where an axes has what was told to Axes.bxp, and what that has drawn
_shown_as_result: Set[int] = set()  # of the current cell


def is_figure(value: Any) -> bool:
    module = sys.modules.get("matplotlib.figure")
    return module is not None and isinstance(value, module.Figure)


def as_png(figure: Any) -> bytes:
    """The figure without the empty space around it, as `bbox_inches="tight"` has it."""
    buffer = io.BytesIO()
    if not _write_cropped(figure, buffer):
        look = {"facecolor": figure.get_facecolor(), "edgecolor": figure.get_edgecolor(), "dpi": figure.dpi}
        figure.canvas.print_figure(buffer, format="png", bbox_inches="tight", **look)
    _shown_as_result.add(id(figure))
    return buffer.getvalue()


def forget() -> None:
    """Nothing was displayed."""
    _shown_as_result.clear()


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
        _remember_boxes(sys.modules["matplotlib.axes"].Axes)

    return adapt


def _remember_boxes(kind: Any) -> None:
    """What box plots are drawn from stays with their axes: their lines alone do not say which is the mean."""
    draw = kind.bxp

    @functools.wraps(draw)
    def bxp(self: Any, bxpstats: Any, *args: Any, **kwargs: Any) -> Any:
        stats = list(bxpstats)
        made = draw(self, stats, *args, **kwargs)
        vars(self).setdefault(BOXES, []).append((stats, made))
        return made

    kind.bxp = bxp


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
