"""What cells do, as outputs of a notebook and as messages."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from casemate.integrations.jupyter.outputs import PIECE_COST, Displays, Outputs, error_of, message_of, output_of
from casemate.sdk.code import CLEAR, TABLE, CodeEnd, CodeTimedOut, Execution, Interrupted, LeftOut, Ok, Raised, Result
from casemate.sdk.code import error_of as sdk_error_of
from casemate.sdk.results import Logs

PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(100)).decode()


def shown(data: dict[str, Any], kind: str = "display", **more: Any) -> Result:
    return Result.from_json({"type": kind, "data": data, **more})


def ended(end: CodeEnd | None = None, count: int = 3, **more: Any) -> Execution:
    end = end or Ok()
    settings: dict[str, Any] = {"files_changed": (), "cell_id": "c", "context": "default", "truncated_bytes": 0, **more}
    return Execution((), Logs("", ""), sdk_error_of(end), end, count, 1.5, offset=0, **settings)


def test_each_kind_of_output_is_what_nbformat_wants() -> None:
    assert output_of(shown({"text/plain": "42"}, "result"), 3) == {
        "output_type": "execute_result",
        "execution_count": 3,
        "data": {"text/plain": "42"},
        "metadata": {},
    }
    picture = shown({"image/png": PNG, "text/plain": "<Figure>"}, metadata={"image/png": {"width": 9}})
    assert output_of(picture) == {
        "output_type": "display_data",
        "data": {"image/png": PNG, "text/plain": "<Figure>"},
        "metadata": {"image/png": {"width": 9}},
    }


def test_our_own_types_stay_out_and_what_was_cut_is_said() -> None:
    output = output_of(shown({TABLE: {"rows": []}, "text/html": "<table>"}, cut={"image/png": 10**9, TABLE: 5}))
    assert output["data"] == {"text/html": "<table>"}
    assert output["metadata"] == {"casemate": {"cut": {"image/png": 10**9}}}


def test_only_json_types_hold_anything_but_text() -> None:
    data = {"application/json; charset=x": {"a": 1}, "application/geo+json": {"a": 1}, "application/json": None}
    assert output_of(shown(data))["data"] == {
        "application/json; charset=x": '{"a": 1}',
        "application/geo+json": {"a": 1},
        "application/json": None,
    }


def test_messages_name_the_display_that_they_change() -> None:
    assert message_of(shown({"text/plain": "1"}, "result"), 7) == (
        "execute_result",
        {"data": {"text/plain": "1"}, "metadata": {}, "execution_count": 7, "transient": {}},
    )
    assert message_of(shown({"text/plain": "1"}, display_id="d"))[1]["transient"] == {"display_id": "d"}
    assert message_of(shown({CLEAR: {"wait": True}})) == ("clear_output", {"wait": True})
    kind, content = message_of(shown({"text/plain": "2"}, display_id="d", update=True))
    assert (kind, content["transient"]) == ("update_display_data", {"display_id": "d"})
    assert "execution_count" not in content


def test_an_error_has_its_traceback_in_lines_and_one_without_has_a_line() -> None:
    raised = error_of(ended(Raised("ValueError", "no", "Traceback:\n  x\nValueError: no\n")))
    assert raised == {
        "output_type": "error",
        "ename": "ValueError",
        "evalue": "no",
        "traceback": ["Traceback:", "  x", "ValueError: no"],
    }
    timed_out = error_of(ended(CodeTimedOut(2.0, True)))
    assert timed_out is not None
    assert timed_out["traceback"] == ["TimedOut: after 2 s; its context goes on"]
    interrupted = error_of(ended(Interrupted(True)))
    assert interrupted is not None
    assert interrupted["ename"] == "KeyboardInterrupt"
    assert error_of(ended()) is None


def test_streams_and_results_keep_their_order_and_adjacent_pieces_are_one() -> None:
    cell = Outputs()
    cell.stdout(b"a\n")
    cell.stdout("bé".encode()[:2])
    cell.result(shown({"text/plain": "1"}))
    cell.stdout("bé".encode()[2:])
    cell.stderr(b"warn")
    cell.stdout(b"c\xff")
    cell.result(shown({"text/plain": "2"}, "result"))
    outputs = cell.ended(ended(count=5))
    assert [output.get("text") or output["data"] for output in outputs] == [
        "a\nb",
        {"text/plain": "1"},
        "é",
        "warn",
        "c\ufffd",
        {"text/plain": "2"},
    ]
    assert outputs[-1]["execution_count"] == 5


def test_an_update_changes_what_is_shown_also_in_an_earlier_cell() -> None:
    displays = Displays()
    first, second = Outputs(displays), Outputs(displays)
    first.result(shown({"text/plain": "old"}, display_id="d"))
    before = first.ended(ended())
    second.result(shown({"text/plain": "new"}, display_id="d", update=True))
    second.result(shown({"text/plain": "?"}, display_id="unknown", update=True))
    assert second.ended(ended()) == []
    assert before[0]["data"] == {"text/plain": "new"}
    second.result(shown({"text/plain": "again"}, display_id="d"))
    assert before[0]["data"] == {"text/plain": "again"}


def test_clearing_forgets_at_once_or_with_the_next_output() -> None:
    displays = Displays()
    cell = Outputs(displays)
    cell.stdout(b"gone")
    cell.result(shown({"text/plain": "gone"}, display_id="d"))
    cell.result(shown({CLEAR: {"wait": False}}))
    cell.stdout(b"stays for now")
    cell.result(shown({CLEAR: {"wait": True}}))
    assert [output["text"] for output in cell.so_far()] == ["stays for now"]
    cell.result(shown({"text/plain": "x"}))
    cell.result(shown({"text/plain": "nowhere"}, display_id="d", update=True))
    assert [output["data"] for output in cell.ended(ended())] == [{"text/plain": "x"}]


@pytest.mark.parametrize("piece", [1, 7, 900])
def test_of_a_flood_the_first_and_the_last_half_stay_with_the_results_among_them(piece: int) -> None:
    cell = Outputs(stream_chars=8000)
    said = "".join(f"{n:05d}\n" for n in range(5000)).encode()
    for at in range(0, len(said), piece):
        cell.stdout(said[at : at + piece])
        if at <= 12_000 < at + piece:
            cell.result(shown({"text/plain": "kept"}))
    first, note, last = (output for output in cell.ended(ended()) if output["output_type"] == "stream")
    assert (first["name"], note["name"], last["name"]) == ("stdout", "stderr", "stdout")
    assert first["text"].startswith("00000\n")
    assert last["text"].endswith("04999\n")
    assert 3000 <= len(first["text"]) <= 4000 + PIECE_COST
    assert 3000 <= len(last["text"]) <= 4000 + 2048
    lost = len(said) - len(first["text"]) - len(last["text"])
    assert f"{lost} characters of output are left out" in note["text"]
    assert [o["data"] for o in cell.so_far() if "data" in o] == [{"text/plain": "kept"}]


def test_two_streams_in_turn_a_letter_each_are_bounded_too() -> None:
    cell = Outputs(stream_chars=80 * PIECE_COST)
    for _ in range(10_000):
        cell.stdout(b"a")
        cell.stderr(b"b")
    outputs = cell.ended(ended())
    assert len(outputs) < 85
    assert outputs[-1] == {"output_type": "stream", "name": "stderr", "text": "b"}


def test_results_that_are_too_large_for_the_notebook_are_left_out_and_counted() -> None:
    displays = Displays(limit_bytes=5000)
    cell = Outputs(displays)
    for _ in range(4):
        cell.result(shown({"text/plain": "x" * 1000}))
    outputs = cell.ended(ended(left_out=LeftOut(2, 10)))
    assert [output["output_type"] for output in outputs] == ["display_data"] * 3 + ["stream"]
    assert "3 results" in outputs[-1]["text"]


def test_an_update_that_has_no_room_leaves_what_was_there() -> None:
    cell = Outputs(Displays(limit_bytes=2000))
    cell.result(shown({"text/plain": "x"}, display_id="d"))
    cell.result(shown({"text/plain": "y" * 5000}, display_id="d", update=True))
    assert cell.so_far()[0]["data"] == {"text/plain": "x"}


def test_an_update_reaches_the_last_hundred_of_an_id() -> None:
    displays = Displays()
    cell = Outputs(displays)
    for number in range(150):
        displays.add("d", output_of(shown({"text/plain": str(number)})))
        if number == 0:
            first = displays._by_id["d"][0]
    last = displays._by_id["d"][-1]
    cell.result(shown({"text/plain": "new"}, display_id="d", update=True))
    assert (first["data"], last["data"]) == ({"text/plain": "0"}, {"text/plain": "new"})


def test_a_count_that_is_none_is_left_out() -> None:
    cell = Outputs()
    cell.result(shown({"text/plain": "1"}, "result"))
    assert cell.ended(ended(count=-1))[0]["execution_count"] is None
