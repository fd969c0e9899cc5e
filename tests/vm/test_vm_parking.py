"""Parked for real: frozen when there is nothing to do, woken by any call, awake in time for what is due.

The daemon of these tests has a ``park_margin_s`` of 5; by default it is 60.
"""

from __future__ import annotations

import os
import signal
import time

import pytest
from resting import clocks, cpu_s, is_frozen, is_parked, never, wait_parked, wait_until
from vm_world import Daemon

from casemate.errors import CasemateError
from casemate.sdk import Sandbox, TimedOut

pytestmark = pytest.mark.vm
PARK_S = 0.5
SERVE = "import socket; s = socket.create_server(('', 8000)); c = s.accept()[0]; c.recv(1)"  # http.server polls


def test_frozen_it_takes_no_cpu_and_looking_does_not_wake_it(daemon: Daemon, no_trace: None) -> None:
    with Sandbox.create(park_after_s=PARK_S) as sandbox:
        wait_parked(sandbox)
        before = cpu_s(sandbox)
        for _ in range(4):
            stats = sandbox.stats()
            assert (stats.guest, stats.cpu_s) == (None, before)
            with sandbox.logs() as pieces:
                list(pieces)
            assert [info.parked for info in Sandbox.list()] == [True]
            time.sleep(0.5)
        assert is_frozen(sandbox)
        assert cpu_s(sandbox) == before
        began = time.perf_counter()
        assert sandbox.commands.run(["echo", "awake"]).stdout == "awake\n"
        assert time.perf_counter() - began < 2
        assert not is_frozen(sandbox)
        wait_parked(sandbox)
        assert sandbox.run_code("6 * 7").text == "42"
        wait_parked(sandbox)
        sandbox.files.write("x", b"y")
        wait_parked(sandbox)


def test_all_clocks_are_right_after_it(daemon: Daemon, no_trace: None) -> None:
    with Sandbox.create(park_after_s=PARK_S) as sandbox:
        sandbox.run_code("0")
        before = clocks(sandbox)
        wait_parked(sandbox)
        never(lambda: not is_frozen(sandbox), 4)
        after = clocks(sandbox)
        passed_s = [late - early for early, late in zip(before, after, strict=True)]
        assert passed_s[1] > 4
        for name, guest_s in zip(("realtime", "monotonic", "boottime"), passed_s[2:], strict=True):
            assert guest_s == pytest.approx(passed_s[1], abs=0.5), name
        assert after[2] == pytest.approx(after[0], abs=0.5)


def test_a_timer_of_a_program_left_behind_fires_in_time(daemon: Daemon, no_trace: None) -> None:
    """Twelve seconds here for the seventy of a default daemon: parked at first, awake before it is due."""
    with Sandbox.create(park_after_s=PARK_S) as sandbox:
        sandbox.commands.run("(sleep 12 && touch f) >/dev/null 2>&1 </dev/null & date +%s.%N > began; sync")
        began = time.monotonic()
        wait_parked(sandbox, 5)
        before = cpu_s(sandbox)
        never(lambda: not is_frozen(sandbox), 5)
        assert cpu_s(sandbox) == before
        wait_until(lambda: not is_frozen(sandbox), 10)
        assert 9 < time.monotonic() - began < 11.9
        never(lambda: is_parked(sandbox), 12.5 - (time.monotonic() - began))
        wait_parked(sandbox, 30)
        late_s = sandbox.files.stat("f").mtime_ns / 1e9 - float(sandbox.files.read("began")) - 12
        assert (
            -0.1 < late_s < 2
        )  # it was awake then, which a crowded host makes slow, and not first woken by who looked


def test_not_while_it_works(daemon: Daemon, no_trace: None) -> None:
    """A sleeping command, a sleeping cell, a busy program left behind, an open connection, a timer that is due soon."""
    names = ("exec", "busy", "port", "timer")
    made = {name: Sandbox.create(park_after_s=PARK_S) for name in names}
    try:
        with made["exec"].commands.start(["sleep", "100"], detach=True) as running:
            sleeper = running.exec_id
        made["busy"].commands.run("nohup sh -c 'while :; do :; done' >/dev/null 2>&1 </dev/null &")
        made["timer"].commands.run("nohup sh -c 'while :; do sleep 1; done' >/dev/null 2>&1 </dev/null &")
        made["port"].commands.run(f'nohup python3 -c "{SERVE}" >/dev/null 2>&1 </dev/null &')
        wait_until(lambda: made["port"].ports.list())
        with made["port"].ports.connect(8000):
            never(lambda: [name for name, box in made.items() if is_parked(box)], 4)
        wait_parked(made["port"])
        made["exec"].commands.signal(sleeper, "KILL")
        wait_parked(made["exec"])
    finally:
        for sandbox in made.values():
            sandbox.kill()


def test_a_terminal_left_open_is_parked_and_goes_on_at_the_next_key(daemon: Daemon, no_trace: None) -> None:
    with Sandbox.create(park_after_s=PARK_S) as sandbox, sandbox.commands.terminal() as terminal:
        terminal.feed(b"echo be''gun\r")
        seen = b""
        for piece in terminal.output():
            seen += piece
            if b"begun" in seen:
                break
        wait_parked(sandbox)
        never(lambda: not is_frozen(sandbox), 12)  # longer than an agent may be silent that is awake
        terminal.feed(b"echo go''ne on\r")
        for piece in terminal.output():
            seen += piece
            if b"gone on" in seen:
                break
        assert not is_frozen(sandbox)


def test_the_time_out_of_a_terminal_nobody_looks_at_holds(daemon: Daemon, no_trace: None) -> None:
    with Sandbox.create(park_after_s=PARK_S) as sandbox:
        with sandbox.commands.terminal(["sleep", "100"], timeout_s=9, detach=True) as terminal:
            began = time.monotonic()
        wait_parked(sandbox, 5)
        wait_until(lambda: not is_frozen(sandbox), 9)
        never(lambda: is_parked(sandbox), 9.3 - (time.monotonic() - began))
        wait_parked(sandbox, 10)
        with sandbox.commands.attach_terminal(terminal.exec_id) as again:
            assert list(again.output()) == []
        assert again.end is not None
        assert again.end.end == TimedOut(9)
        assert again.end.duration_ms == pytest.approx(9000, abs=1500)


@pytest.mark.parametrize("end", ["kill", "vmm"])
def test_its_end_is_no_different(daemon: Daemon, no_trace: None, end: str) -> None:
    sandbox = Sandbox.create(park_after_s=PARK_S)
    wait_parked(sandbox)
    if end == "vmm":
        assert sandbox.info.pid is not None
        os.kill(sandbox.info.pid, signal.SIGKILL)
        wait_until(lambda: sandbox.refresh().state == "terminated", 10)
        assert sandbox.info.state_reason is not None
        assert sandbox.info.state_reason.code == "vmm-died"
        with pytest.raises(CasemateError):
            sandbox.commands.run(["true"])
    began = time.monotonic()
    sandbox.kill()
    assert time.monotonic() - began < 5
