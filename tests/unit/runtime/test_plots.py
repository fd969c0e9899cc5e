"""A figure's picture is as large as matplotlib's own with ``bbox_inches="tight"``, which Jupyter shows."""

from __future__ import annotations

import io
from typing import Any

import pytest

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("agg")
image = pytest.importorskip("PIL.Image")
from matplotlib import pyplot as plt  # noqa: E402

from casemate.runtime import plots  # noqa: E402


def size_of(png: bytes) -> tuple[int, int]:
    with image.open(io.BytesIO(png)) as picture:
        found: tuple[int, int] = picture.size
    return found


def as_matplotlib(figure: Any) -> tuple[int, int]:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", bbox_inches="tight", dpi=figure.dpi)
    return size_of(buffer.getvalue())


@pytest.mark.parametrize("number", range(12))
def test_a_picture_has_the_size_that_matplotlib_gives_it(number: int) -> None:
    figure, axes = plt.subplots(figsize=(5 + number / 7, 4 + number / 13), dpi=(72, 96.5, 100)[number % 3])
    try:
        axes.plot([1, 10**number])
        axes.set_title("T" * (3 * number))
        if number % 2:
            axes.set_ylabel(r"$\frac{a}{b}$")
        if number == 7:  # what lies outside of the figure is shown, too
            figure.text(1.2, 0.5, "outside")
        assert size_of(plots.as_png(figure) or b"") == as_matplotlib(figure)
    finally:
        plt.close(figure)
        plots.forget()


@pytest.mark.parametrize("at_end", [False, True])
@pytest.mark.parametrize("layout", [{"tight_layout": True}, {"constrained_layout": True}], ids=str)
def test_what_matplotlib_lays_out_is_as_jupyter_has_it(layout: dict[str, bool], at_end: bool) -> None:
    """At a cell's end Jupyter has drawn a figure once before it shows it, and that moves things."""
    sizes = []
    for measure in (plots.as_png, as_matplotlib):
        figure, axes = plt.subplots(**layout)
        axes.set_aspect(1)
        axes.inset_axes([0, 1.05, 1, 0.25]).hist([1, 2, 3])
        axes.scatter([1, 2, 3], [1000, 2000, 1500])
        if at_end and measure is as_matplotlib:
            figure.canvas.draw()
        shown: list[Any] = []
        if measure is plots.as_png:
            plots.show_open(lambda figure, to=shown: to.append(size_of(plots.as_png(figure) or b"")), at_end)
            sizes += shown
        else:
            sizes.append(as_matplotlib(figure))
            plt.close(figure)
    assert sizes[0] == sizes[1]


def test_figures_come_in_the_order_of_use_and_one_with_nothing_has_no_picture() -> None:
    plt.figure(2).add_subplot()
    plt.figure(1).add_subplot()
    plt.figure(3)
    plt.figure(2)
    shown: list[Any] = []
    plots.show_open(lambda figure: shown.append((figure.number, plots.as_png(figure) is not None)))
    assert shown == [(1, True), (3, False), (2, True)]
    assert not plt.get_fignums()
