"""Cells over the wire, natively: what comes of one, in which order, how it ends."""

from __future__ import annotations

import os
import signal
import time

import pytest
from cell_guest import CellGuest, Seen

STUBBORN = "import time\nprint('begun')\nwhile True:\n    try: time.sleep(60)\n    except KeyboardInterrupt: pass"


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
    assert guest.run("input()").kind == "error"
    assert guest.run("input()", stdin=b"").kind == "error"


def test_long_code_and_code_that_is_no_text(guest: CellGuest) -> None:
    assert guest.run("#" * 5_000_000 + "\n7").text == "7"
    bad = guest.run(b"'\xff'")
    assert bad.end is not None
    assert bad.end["end"]["name"] == "SyntaxError"


def test_code_over_the_limit_is_refused_and_forgotten(guest: CellGuest) -> None:
    seen = guest.begin_cell(b"#" * (17 << 20), cell_id="too-long")
    guest.until(lambda: seen.over)
    assert seen.reset is not None
    assert seen.reset.code == "invalid-spec"
    assert guest.act("cell", op="join", cell_id="too-long", offset=0).denied is not None


def test_an_error(guest: CellGuest) -> None:
    seen = guest.run("1 / 0")
    assert seen.end is not None
    end = seen.end["end"]
    assert (end["kind"], end["name"], end["value"]) == ("error", "ZeroDivisionError", "division by zero")
    assert "1 / 0" in end["traceback"]


def test_an_error_of_any_length_fits_its_message(guest: CellGuest) -> None:
    seen = guest.run("raise ValueError('\\U0001f600' * 10_000_000)")
    assert seen.kind == "error"


# ------------------------------------------------------------------------- order


def test_output_and_results_come_in_their_order(guest: CellGuest) -> None:
    code = (
        "import sys\nfrom os import write\n"
        "for n in range(20):\n"
        "    print(n)\n"
        "    print('e', n, file=sys.stderr)\n"
        "'last'"
    )
    expected = [piece for n in range(20) for piece in ((1, b"%d\n" % n), (2, b"e %d\n" % n))]
    assert guest.run(code).order == [*expected, "'last'"]


def test_what_is_printed_after_a_result_comes_after_it(guest: CellGuest) -> None:
    seen = guest.run("for n in range(200): display(n); print('after', n)")
    assert seen.order == [piece for n in range(200) for piece in (str(n), (1, b"after %d\n" % n))]


def test_an_agent_that_comes_late_reads_in_order_all_the_same(guest: CellGuest) -> None:
    """Its kernel names the pipe first, which it has read from last."""
    seen = guest.begin_cell("import time\nprint('a', flush=True)\ntime.sleep(0.2)\ndisplay(1)\nprint('b', flush=True)")
    guest.until(lambda: seen.stdout)
    time.sleep(0.6)
    guest.until(lambda: seen.over)
    assert seen.order == [(1, b"a\n"), "1", (1, b"b\n")]


def test_what_was_written_past_python_comes_before_the_end(guest: CellGuest) -> None:
    for n in range(20):
        seen = guest.run(f"import os; os.write(1, b'{n}' * 20_000); os.write(2, b'{n}' * 20_000); None")
        assert (seen.stream(1), seen.stream(2)) == (b"%d" % n * 20_000, b"%d" % n * 20_000)


def test_much_output_comes_before_the_result_after_it(guest: CellGuest) -> None:
    seen = guest.run("print('x' * 3_000_000)\n'done'")
    assert [len(piece) if isinstance(piece, str) else len(piece[1]) for piece in seen.order] == [3_000_001, 6]


def test_a_large_result_is_whole(guest: CellGuest) -> None:
    seen = guest.run("'y' * 900_000", limits={"text_bytes": 2_000_000})
    assert len(seen.text or "") == 900_002


# -------------------------------------------------------------------------- ends


def test_a_time_out_that_the_state_survives(guest: CellGuest) -> None:
    guest.run("kept = 1")
    seen = guest.run("import time\nprint('begun')\ntime.sleep(60)", timeout_s=0.3)
    assert seen.end is not None
    assert seen.end["end"] == {"kind": "timed-out", "after_s": 0.3, "state_kept": True}
    assert seen.stdout == "begun\n"
    assert guest.run("kept").text == "1"


def test_a_time_out_that_it_does_not(guest: CellGuest) -> None:
    guest.run("gone = 1")
    seen = guest.run(STUBBORN, timeout_s=0.2, grace_s=0.3)
    assert seen.end is not None
    assert seen.end["end"] == {"kind": "timed-out", "after_s": 0.2, "state_kept": False}
    assert 500 <= seen.end["duration_ms"] < 2000
    lost = guest.run("gone")
    assert lost.end is not None
    assert lost.end["end"]["name"] == "NameError"
    assert lost.end["execution_count"] == 1


def test_a_time_out_before_the_context_has_begun_is_not_lost(guest: CellGuest) -> None:
    """Between cells it ignores SIGINT."""
    pid = int(guest.run("import os; os.getpid()").text or "")
    os.kill(pid, signal.SIGSTOP)
    seen = guest.begin_cell("import time; time.sleep(60)", timeout_s=0.1)
    guest.let_pass(0.4)
    os.kill(pid, signal.SIGCONT)
    guest.until(lambda: seen.over)
    assert seen.end is not None
    assert seen.end["end"] == {"kind": "timed-out", "after_s": 0.1, "state_kept": True}


def test_a_time_out_reaches_a_subprocess(guest: CellGuest) -> None:
    assert guest.run("import subprocess; subprocess.run(['sleep', '60'])", timeout_s=0.3).kind == "timed-out"


def test_an_interrupt_keeps_the_state(guest: CellGuest) -> None:
    guest.run("kept = 2")
    seen = guest.begin_cell("print('begun'); import time; time.sleep(60)", cell_id="to-interrupt")
    guest.until(lambda: seen.stdout)
    assert guest.act("cell", op="interrupt", cell_id="to-interrupt").accepted == {}
    guest.until(lambda: seen.over)
    assert seen.end is not None
    assert seen.end["end"] == {"kind": "interrupted", "state_kept": True}
    assert guest.run("kept").text == "2"
    assert guest.act("cell", op="interrupt", cell_id="to-interrupt").accepted == {}  # it has ended: as wished


def test_an_interrupt_that_is_not_heeded_ends_the_context(guest: CellGuest) -> None:
    seen = guest.begin_cell(STUBBORN, grace_s=0.3, cell_id="stubborn")
    guest.until(lambda: seen.stdout)
    guest.act("cell", op="interrupt", cell_id="stubborn")
    guest.until(lambda: seen.over)
    assert seen.end is not None
    assert seen.end["end"] == {"kind": "interrupted", "state_kept": False}


def test_a_caller_who_goes_interrupts(guest: CellGuest) -> None:
    guest.run("kept = 3")
    seen = guest.begin_cell("print('begun'); import time; time.sleep(60)", cell_id="left")
    guest.until(lambda: seen.stdout)
    guest.host.reset(seen.number, "closed")
    again = guest.join("left")
    guest.until(lambda: again.over)
    assert again.end is not None
    assert again.end["end"] == {"kind": "interrupted", "state_kept": True}
    assert guest.run("kept").text == "3"


def test_a_caller_who_goes_from_a_detached_cell_does_not(guest: CellGuest) -> None:
    seen = guest.begin_cell("print('begun'); import time; time.sleep(0.4); 'done'", cell_id="detached", detach=True)
    guest.until(lambda: seen.stdout)
    guest.host.reset(seen.number, "closed")
    again = guest.join("detached")
    guest.until(lambda: again.over)
    assert (again.kind, again.text, again.stdout) == ("ok", "'done'", "begun\n")


def test_a_lost_stream_interrupts_nothing(guest: CellGuest) -> None:
    seen = guest.begin_cell("print('begun'); import time; time.sleep(0.4); 'done'", cell_id="lost")
    guest.until(lambda: seen.stdout)
    guest.server.lose()
    guest.begin()
    again = guest.join("lost", len("begun\n"))
    guest.until(lambda: again.over)
    assert (again.kind, again.text, again.stdout) == ("ok", "'done'", "")


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import os; os._exit(3)", "exited with 3"),
        ("import os; os.kill(os.getpid(), 9)", "killed by signal 9"),
        ("import ctypes; ctypes.string_at(0)", "killed by signal 11"),
    ],
)
def test_a_death_is_told_and_the_next_cell_begins_anew(guest: CellGuest, code: str, reason: str) -> None:
    seen = guest.run(f"print('last words', flush=True)\n{code}")
    assert seen.end is not None
    assert seen.end["end"] == {"kind": "context-died", "reason": reason}
    assert seen.stdout == "last words\n"
    again = guest.run("1 + 1")
    assert again.text == "2"
    assert again.end is not None
    assert again.end["execution_count"] == 1


def test_a_child_that_holds_the_pipes_does_not_hold_up_the_end(guest: CellGuest) -> None:
    seen = guest.run("import subprocess; p = subprocess.Popen(['sleep', '60']); print(p.pid)")
    assert seen.kind == "ok"
    assert seen.end is not None
    assert seen.end["duration_ms"] < 5000
    guest.run("p.kill(); p.wait()")


def test_what_is_written_between_cells_is_the_next_ones(guest: CellGuest) -> None:
    guest.run("import threading, time\nthreading.Timer(0.1, lambda: print('late')).start()")
    guest.let_pass(0.3)
    assert guest.run("1").stdout == "late\n"


def test_what_was_forked_dies_with_the_context(guest: CellGuest) -> None:
    seen = guest.run(
        "import subprocess, os; p = subprocess.Popen(['sleep', '60']); print(p.pid, flush=True); os._exit(0)"
    )
    pid = int(seen.stdout)
    guest.until(lambda: not os.path.exists(f"/proc/{pid}") or _is_zombie(pid))


def _is_zombie(pid: int) -> bool:
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] in "ZX"
