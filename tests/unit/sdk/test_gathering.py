"""What is kept of a cell's results: bounded, whatever they are made of."""

from __future__ import annotations

from typing import Any

import pytest

from casemate.sdk.gathering import MAX_RESULTS_BYTES, Gathered

END = {"event": "end", "end": {"kind": "ok"}, "duration_ms": 1}
LARGE = "x" * (MAX_RESULTS_BYTES // 8)


def bundle(**more: Any) -> dict[str, Any]:
    return {"event": "result", "result": {"type": "display", "data": {}, "metadata": {}, **more}}


def gathered() -> Gathered:
    return Gathered({"cell_id": "c", "context": "default"})


@pytest.mark.parametrize("large", [{"data": {"text/plain": LARGE}}, {"metadata": {"a": LARGE}}])
def test_large_ones_are_kept_as_far_as_there_is_room(large: dict[str, Any]) -> None:
    all_of_them = gathered()
    for _ in range(10):
        all_of_them.result(bundle(**large))
    execution = all_of_them.ended(END)
    assert len(execution.results) == 7
    assert execution.truncated_bytes > 3 * len(LARGE)


def test_many_that_hold_nothing_take_room_too() -> None:
    all_of_them = gathered()
    for _ in range(MAX_RESULTS_BYTES // 1024 + 10):
        all_of_them.result(bundle())
    assert len(all_of_them.ended(END).results) < MAX_RESULTS_BYTES // 1024


def test_an_update_is_no_way_around_it() -> None:
    all_of_them = gathered()
    for number in range(10):
        all_of_them.result(bundle(display_id=str(number)))
    for number in range(10):
        all_of_them.result(bundle(display_id=str(number), update=True, data={"text/plain": LARGE}))
    execution = all_of_them.ended(END)
    assert [result.text is not None for result in execution.results] == [True] * 7 + [False] * 3
    assert execution.truncated_bytes > 3 * len(LARGE)
