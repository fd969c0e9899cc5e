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


def clear(wait: bool) -> dict[str, Any]:
    return bundle(data={"application/vnd.casemate.clear+json": {"wait": wait}})


def test_clearing_takes_the_results_so_far_away_at_once_or_with_the_next() -> None:
    cell = gathered()
    for text in ("a", "b"):
        cell.result(bundle(data={"text/plain": text}))
    assert cell.result(clear(False)).clears == "now"
    cell.result(bundle(data={"text/plain": "c"}))
    assert cell.result(clear(True)).clears == "next"
    assert [result.text for result in cell.ended(END).results] == ["c"]
    cell.result(bundle(data={"text/plain": "d"}))
    assert [result.text for result in cell.ended(END).results] == ["d"]
    cell.result(clear(True))
    cell.output({"event": "stdout", "data": b"eA=="})
    assert not cell.ended(END).results


def test_what_was_cleared_takes_no_room() -> None:
    cell = gathered()
    for _ in range(20):
        cell.result(clear(True))
        cell.result(bundle(data={"text/plain": LARGE}))
    execution = cell.ended(END)
    assert (len(execution.results), execution.truncated_bytes) == (1, 0)
