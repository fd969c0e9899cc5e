"""Which timers are a user's, out of a list that the guest's kernel (6.12) wrote with a process of each kind of wait."""

from __future__ import annotations

import re
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from casemate.guest.timer_list import earliest_ns, others_run

RECORDED = Path(__file__).with_name("timer_list.txt").read_bytes()
KINDS = {"it_real_fn": 660402685026, "timerfd_tmrproc": 771410429382, "posix_timer_fn": 993412116280}


def without(*functions: str) -> bytes:
    """The recorded list after these timers have gone."""
    names = "|".join(functions)
    return re.sub(rf" #\d+: <\w+>, ({names}), .*\n # expires.*\n".encode(), b"", RECORDED)


def test_the_earliest_of_all_waits() -> None:
    assert earliest_ns(RECORDED) == 115393581  # the poll of the agent itself, which was not the one that read


def test_each_kind_is_seen() -> None:
    gone = ["hrtimer_wakeup"]
    for kind, due_ns in KINDS.items():
        assert earliest_ns(without(*gone)) == due_ns
        gone.append(kind)
    assert b"dl_task_timer" in without(*gone)
    assert earliest_ns(without(*gone)) is None


def test_the_kernels_own_are_not_a_users() -> None:
    own = set(re.findall(rb">, (\w+), S", without("hrtimer_wakeup", *KINDS)))
    assert own == {b"tick_nohz_handler", b"dl_task_timer", b"watchdog_timer_fn"}


def test_one_that_is_overdue_is_due_now() -> None:
    assert earliest_ns(RECORDED.replace(b"[in 115393581 to", b"[in -5 to")) == 0


@given(st.binary() | st.integers(0, len(RECORDED)).map(lambda at: RECORDED[:at]))
def test_any_bytes_are_a_list(listed: bytes) -> None:
    found = earliest_ns(listed)
    assert found is None or found >= 0


def test_who_asks_does_not_count_as_running(tmp_path: Path) -> None:
    loadavg = tmp_path / "loadavg"
    loadavg.write_text("0.00 0.00 0.00 1/74 123\n")
    assert not others_run(str(loadavg))
    loadavg.write_text("0.00 0.00 0.00 2/74 123\n")
    assert others_run(str(loadavg))
