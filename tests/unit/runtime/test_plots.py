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
        assert size_of(plots.as_png(figure)) == as_matplotlib(figure)
    finally:
        plt.close(figure)
        plots.forget()
