"""Figures as data from a real guest, with the libraries of its image."""

from __future__ import annotations

import pytest

from casemate.sdk import Sandbox

pytestmark = pytest.mark.vm
CELL = """
import matplotlib.pyplot as plt, pandas as pd
frame = pd.DataFrame({"u": [1, 2, 9], "v": [3, 4, 5]}, index=pd.date_range("2024-02-28", periods=3))
frame.plot(title="lines"); plt.show()
plt.scatter([1, 2], [3, 4]); plt.show()
frame.plot.barh(stacked=True); plt.show()
plt.pie([1, 3], labels=["m", "n"]); plt.show()
frame.plot.box(); plt.show()
plt.imshow([[1, 2]]); plt.show()
"""


def test_five_kinds_are_pictures_and_charts(sandbox: Sandbox) -> None:
    execution = sandbox.run_code(CELL, timeout_s=90)
    assert execution.ok, execution.error
    assert all(result.png for result in execution.results)
    assert [None if result.chart is None else result.chart.type for result in execution.results] == [
        *("line", "scatter", "bar", "pie", "box"),
        None,
    ]
    lines, _, bars, pie, boxes = (result.chart for result in execution.results[:5])
    assert lines is not None
    assert bars is not None
    assert pie is not None
    assert boxes is not None
    assert (lines.title, lines.x and lines.x.scale) == ("lines", "date")
    assert [(one.label, one.x[1][:10], one.y) for one in lines.series] == [  # type: ignore[union-attr,index]
        ("u", "2024-02-29", (1, 2, 9)),
        ("v", "2024-02-29", (3, 4, 5)),
    ]
    assert bars.horizontal
    assert bars.series[1].base == (1, 2, 9)  # type: ignore[union-attr]
    assert [(one.label, one.share) for one in pie.series] == [("m", 0.25), ("n", 0.75)]  # type: ignore[union-attr]
    assert [(one.label, one.median) for one in boxes.series] == [("u", 2), ("v", 4)]  # type: ignore[union-attr]
