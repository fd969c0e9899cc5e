"""What a cell said is kept, followed, held back, joined at an offset, and forgotten in the end."""

from __future__ import annotations

import os

import pytest
from cell_guest import CellGuest

from casemate.guest import cell_ends, cell_log, cells, folder_watch
from casemate.guest.cell_log import RESULT, STDERR, STDOUT, CellLog
from casemate.wire import bodies

CHATTER = "import sys\nfor n in range(300_000): print('line', n)\n'done'"  # about 3.5 MB


def log_of(guest: CellGuest, cell_id: str) -> CellLog:
    return guest.contexts.table.find(cell_id).log


# ----------------------------------------------------------------------- the log


def test_offsets_count_every_byte() -> None:
    log = CellLog()
    log.append(STDOUT, b"one ")
    log.append(STDOUT, b"two")
    log.append(STDERR, b"three")
    log.append(RESULT, b"{}")
    log.append(RESULT, b"[]")
    assert (log.start, log.end) == (0, 16)
    assert [(r.sub, bytes(r.read(skip))) for r, skip in log.records_from(4)] == [
        (1, b"two"), (2, b"three"), (3, b"{}"), (3, b"[]"),
    ]  # fmt: skip
    assert list(log.records_from(16)) == []


@pytest.mark.parametrize(("asked", "begins"), [(0, 0), (2, 2), (5, 5), (6, 9), (9, 9), (10, 10), (12, 12)])
def test_half_a_result_is_none(asked: int, begins: int) -> None:
    log = CellLog()
    log.append(STDOUT, b"12345")
    log.append(RESULT, b"abcd")
    log.append(STDOUT, b"123")
    assert log.first_from(asked) == begins


def test_the_oldest_goes_but_not_what_is_needed() -> None:
    log = CellLog()
    for _ in range(40):
        log.append(STDOUT, b"x" * 65_536)
    log.trim(5 * 65_536)
    assert log.start == 5 * 65_536
    log.trim(log.end)
    assert log.end - log.start < cell_log.LOG_BYTES
    assert log.first_from(0) == log.start


def test_single_bytes_cost_what_keeping_them_costs() -> None:
    log = CellLog()
    for n in range(100_000):
        log.append(STDOUT + n % 2, b"x")
        if log.is_full():
            log.trim(log.end)
    assert log.held <= cell_log.LOG_BYTES
    assert log.end - log.start < 5000


def test_a_memory_file_that_was_cut_short_is_filled_up() -> None:
    log = CellLog()
    memory = os.memfd_create("result")
    os.write(memory, b"x" * 100_000)
    log.append_file(memory, 100_000)
    os.ftruncate(memory, 70_000)
    (record, _), *rest = log.records_from(0)
    assert not rest
    assert bytes(record.read(0)) == b"x" * 65_536
    assert bytes(record.read(65_536)) == b"x" * (70_000 - 65_536) + b" " * 30_000
    log.close()
    assert log.held == log.held_in_files == 0
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(memory)


def test_the_longest_end_fits_a_message() -> None:
    texts = {name: "\U0001f600" * 60_000 for name in ("name", "value", "traceback")}
    end = cell_ends.checked({"kind": "error", **texts})
    found = {f"/{n}/" + "\u20ac" * (n % 90): (True, True) for n in range(3000)}
    changed, more = folder_watch._listed(found, 0)
    cell = cells.Cell("c" * 100, "x" * 100, cells.Order())
    cell.finish(end, {"files_changed": changed, "files_cut": more})
    assert cell.ended is not None
    assert len(bodies.dump(cell.ended)) > 40_000


# --------------------------------------------------------------------- followers


def test_a_detached_cell_never_waits_and_a_join_is_told_what_was_dropped(guest: CellGuest) -> None:
    seen = guest.begin_cell(CHATTER, cell_id="chatter", detach=True)
    guest.host.reset(seen.number, "closed")
    guest.until(lambda: guest.contexts.table.find("chatter").ended)
    again = guest.join("chatter")
    guest.until(lambda: again.over)
    assert again.accepted is not None
    gap = again.accepted["offset"]
    assert gap > 1_000_000
    assert len(again.stream(1)) <= cell_log.LOG_BYTES
    assert again.stream(1).endswith(b"line 299999\n")
    assert again.text == "'done'"
    assert gap + len(again.stream(1)) + len(again.stream(3)) == log_of(guest, "chatter").end


def test_who_follows_holds_the_cell(guest: CellGuest) -> None:
    seen = guest.begin_cell(CHATTER, cell_id="held", reading=False)
    guest.until(lambda: log_of(guest, "held").is_full())
    guest.let_pass(0.3)
    end = log_of(guest, "held").end
    guest.let_pass(0.3)
    assert log_of(guest, "held").end == end
    assert end < 2 * cell_log.LOG_BYTES
    assert not seen.over
    guest.read_on(seen)
    guest.until(lambda: seen.over)
    assert seen.stdout.splitlines() == [f"line {n}" for n in range(300_000)]
    assert seen.text == "'done'"


def test_who_is_held_is_interrupted_all_the_same(guest: CellGuest) -> None:
    guest.run("kept = 4")
    seen = guest.begin_cell("while True: print('x' * 1000)", cell_id="flood", reading=False)
    guest.until(lambda: log_of(guest, "flood").is_full())
    guest.act("cell", op="interrupt", cell_id="flood")
    guest.until(lambda: guest.contexts.table.find("flood").ended)
    assert log_of(guest, "flood").held <= 3 * cell_log.LOG_BYTES
    guest.read_on(seen)
    guest.until(lambda: seen.over)
    assert seen.kind == "interrupted"
    assert guest.run("kept").text == "4"


def test_who_floods_and_heeds_nothing_is_killed_all_the_same(guest: CellGuest) -> None:
    code = "import os, signal\nsignal.signal(2, lambda *_: None)\nwhile True: os.write(1, b'x' * 1000)"
    seen = guest.begin_cell(code, cell_id="worse", reading=False, timeout_s=0.3, grace_s=0.3)
    guest.let_pass(1.5)
    assert log_of(guest, "worse").held <= 3 * cell_log.LOG_BYTES
    guest.read_on(seen)
    guest.until(lambda: seen.over)
    assert seen.end is not None
    assert seen.end["end"] == {"kind": "timed-out", "after_s": 0.3, "state_kept": False}


def test_two_follow_from_where_each_likes(guest: CellGuest) -> None:
    seen = guest.begin_cell("import sys\nprint('first')\nsys.stdin.readline()\nprint('second')\n3", cell_id="two")
    guest.until(lambda: seen.over)
    whole, rest = guest.join("two"), guest.join("two", 3)
    guest.until(lambda: whole.over and rest.over)
    assert (whole.stdout, whole.text) == ("first\nsecond\n", "3")
    assert (rest.stdout, rest.text) == ("st\nsecond\n", "3")
    assert whole.end == rest.end == seen.end
    begun = [said for said in rest.said if isinstance(said, dict) and said["event"] == "begun"]
    assert len(begun) == 1


def test_a_join_past_the_end_or_of_what_never_was(guest: CellGuest) -> None:
    guest.run("print('x')", cell_id="short")
    for cell_id, offset, code in (("short", 3, "bad-offset"), ("never", 0, "not-found")):
        denied = guest.join(cell_id, offset).denied
        assert denied is not None
        assert denied.code == code


def test_an_id_is_used_once(guest: CellGuest) -> None:
    guest.run("1", cell_id="once")
    denied = guest.begin_cell("1", cell_id="once").denied
    assert denied is not None
    assert denied.code == "state-conflict"


def test_ended_ones_are_kept_within_bounds(guest: CellGuest) -> None:
    for n in range(cells.ENDED_KEPT + 3):
        guest.run("1", cell_id=f"kept-{n}")
    assert guest.join("kept-0").denied is not None
    last = guest.join(f"kept-{cells.ENDED_KEPT + 2}")
    guest.until(lambda: last.over)
    assert last.text == "1"
    assert len(guest.contexts.table.all()) == cells.ENDED_KEPT
    for n in range(12):
        guest.run("print('x' * 900_000)", cell_id=f"large-{n}")
    assert sum(cell.log.held for cell in guest.contexts.table.all()) <= cells.ENDED_BYTES


def test_the_files_of_large_results_go_with_the_cells(guest: CellGuest) -> None:
    guest.run("1")
    for n in range(cells.ENDED_KEPT + 1):
        guest.run("1", cell_id=f"before-{n}")
    before = len(os.listdir("/proc/self/fd"))
    assert len(guest.run("'x' * 200_000").text or "") == 200_002
    assert len(os.listdir("/proc/self/fd")) == before + 1
    for n in range(cells.ENDED_KEPT + 1):
        guest.run("1", cell_id=f"after-{n}")
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_list_says_how_each_stands(guest: CellGuest) -> None:
    running = guest.begin_cell("print('begun'); import time; time.sleep(60)", cell_id="l-runs")
    guest.begin_cell("1", cell_id="l-waits")
    guest.until(lambda: running.stdout)
    accepted = guest.act("cell", op="list").accepted
    assert accepted is not None
    by_id = {cell["cell_id"]: cell for cell in accepted["cells"]}
    assert by_id["l-runs"]["state"] == "running"
    assert by_id["l-runs"]["offset"] == 6
    assert (by_id["l-waits"]["state"], by_id["l-waits"]["place"], by_id["l-waits"]["end"]) == ("queued", 0, None)
    ended = [cell for cell in accepted["cells"] if cell["state"] == "ended"]
    assert ended[-1]["end"] == {"kind": "ok"}
    guest.act("cell", op="interrupt", cell_id="l-waits")
    guest.act("cell", op="interrupt", cell_id="l-runs")
    guest.until(lambda: running.over)


def test_a_list_of_many_long_errors_fits_a_message(guest: CellGuest) -> None:
    for _ in range(cells.ENDED_KEPT):
        guest.run("raise type('\\u20ac' * 300, (Exception,), {})('\\u20ac' * 9000)")
    accepted = guest.act("cell", op="list").accepted
    assert accepted is not None
    assert len(accepted["cells"]) > 20
