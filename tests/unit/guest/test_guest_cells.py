"""Cells over the wire, natively: ends, order, results, queues, death."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from cell_guest import CellGuest, Seen


@pytest.fixture(scope="module")
def guest() -> Iterator[CellGuest]:
    guest = CellGuest()
    yield guest
    guest.close()


def messages(seen: Seen, event: str) -> list[dict[str, object]]:
    return [said for said in seen.said if isinstance(said, dict) and said["event"] == event]


def test_a_cell_begins_shows_and_ends(guest: CellGuest) -> None:
    seen = guest.run("print('out'); 1 + 1", cell_id="first")
    assert seen.accepted == {"cell_id": "first", "context": "default", "place": 0}
    assert messages(seen, "begun") == [{"event": "begun", "execution_count": 1}]
    assert (seen.stdout, seen.text) == ("out\n", "2")
    assert seen.end is not None
    assert seen.end["end"] == {"kind": "ok"}
    assert seen.end["execution_count"] == 1
    assert seen.end["duration_ms"] > 0
    assert (seen.end["files_changed"], seen.end["files_cut"]) == ([], 0)
    assert seen.end["left_out"] == {"results": 0, "result_bytes": 0}


def test_code_may_come_with_the_params(guest: CellGuest) -> None:
    seen = guest.open("cell", op="run", cell_id="inline", code="6 * 7", stdin=False)
    guest.until(lambda: seen.over)
    assert seen.text == "42"


def test_variables_stay(guest: CellGuest) -> None:
    guest.run("x = 5")
    assert guest.run("x + 1").text == "6"


def test_stdin(guest: CellGuest) -> None:
    assert guest.run("input(), input()", stdin=b"one\ntwo\n").text == "('one', 'two')"
