"""Idle, by what it does and not by who is connected: nothing is suspended or killed while it works."""

from __future__ import annotations

import time

import pytest
from resting import never, wait_until
from tests.fair import fair_clock
from vm_world import Daemon

from casemate.errors import StateConflict
from casemate.sdk import Sandbox

pytestmark = pytest.mark.vm
IDLE_S = 1.5
COUNTING = "nohup sh -c 'while :; do echo again >> n; sleep 1; done' >/dev/null 2>&1 </dev/null &"  # under 2 % of a CPU
BUSY = "nohup sh -c 'while :; do :; done' >/dev/null 2>&1 </dev/null &"


def state(sandbox: Sandbox) -> tuple[str, str | None]:
    reason = sandbox.refresh().state_reason
    return sandbox.info.state, reason.code if reason else None


def test_idle_means_without_work(daemon: Daemon, no_trace: None) -> None:
    """All at once. Killed: the idle one, the one whose terminal is silent. Not killed: who works, who is kept alive."""
    boxes = {
        name: Sandbox.create(idle_timeout_s=15, park_after_s=park)  # not less: six are made before the first is used
        for name, park in [("idle", 0.5), ("silent", None), ("exec", 0.5), ("busy", 0.5), ("kept", 0.5), ("talk", None)]
    }
    try:
        with boxes["exec"].commands.start(["sleep", "60"], detach=True):
            pass
        boxes["busy"].commands.run(BUSY)
        boxes["kept"].keep_alive(120)
        with boxes["silent"].commands.terminal(), boxes["talk"].commands.terminal() as talked:
            until, ended = fair_clock() + 90, set[str]()
            while not ended >= {"idle", "silent"} and fair_clock() < until:
                talked.feed(b"#")
                time.sleep(0.4)
                ended = {name for name, box in boxes.items() if state(box)[0] == "terminated"}
        assert ended == {"idle", "silent"}
        assert state(boxes["idle"]) == state(boxes["silent"]) == ("terminated", "idle")
    finally:
        for sandbox in boxes.values():
            sandbox.kill()


def test_idle_it_is_suspended_and_a_call_brings_it_back(daemon: Daemon, no_trace: None) -> None:
    with Sandbox.create(idle_timeout_s=IDLE_S, on_idle="suspend", park_after_s=0.5) as sandbox:
        sandbox.commands.run(COUNTING)
        wait_until(lambda: sandbox.refresh().state == "suspended")
        assert sandbox.info.pid is None
        facts = sandbox.info.suspended
        assert facts is not None
        assert facts.ratio is not None
        before = fair_clock()
        first = len(sandbox.files.read("n"))
        assert fair_clock() - before < 5
        wait_until(lambda: len(sandbox.files.read("n")) > first)
        assert sandbox.refresh().suspended is None


def test_with_auto_resume_off_a_call_is_refused_with_a_remedy(daemon: Daemon, no_trace: None) -> None:
    with Sandbox.create(auto_resume=False) as sandbox:
        sandbox.run_code("kept = 41")
        sandbox.suspend()
        with pytest.raises(StateConflict) as caught:
            sandbox.run_code("kept + 1")
        assert f"casemate resume {sandbox.id}" in caught.value.hint
        never(lambda: sandbox.refresh().state != "suspended", 0.5)
        sandbox.resume()
        assert sandbox.run_code("kept + 1").text == "42"


def test_a_parked_one_is_suspended_and_max_duration_ends_it_there(daemon: Daemon, no_trace: None) -> None:
    sandbox = Sandbox.create(max_duration_s=15, park_after_s=0.3)
    wait_until(lambda: sandbox.refresh().parked)
    sandbox.suspend()
    assert sandbox.refresh().state == "suspended"
    wait_until(lambda: state(sandbox) == ("terminated", "max-duration"), 30)
    sandbox.close()


def test_a_terminal_lives_through_a_suspend(daemon: Daemon, no_trace: None) -> None:
    with Sandbox.create() as sandbox, sandbox.commands.terminal() as terminal:
        seen = b""

        def wait_for(what: bytes) -> None:
            nonlocal seen
            for piece in terminal.output():
                seen += piece
                if what in seen:
                    return

        terminal.feed(b"mine=ke''pt; echo be''gun\r")
        wait_for(b"begun")
        sandbox.suspend()
        assert sandbox.refresh().state == "suspended"
        terminal.feed(b"echo $mine it\r")
        wait_for(b"kept it")
        assert sandbox.refresh().state == "running"
