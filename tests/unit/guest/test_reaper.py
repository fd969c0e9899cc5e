"""Each status goes to the one who asked; nobody else's is taken. Run in a child, which may be a subreaper."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

SCENE = """
import ctypes, os, random, signal, time
from casemate.guest.reactor import Reactor
from casemate.guest.reaper import Reaper

ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: orphans come to us, as they come to PID 1
reactor = Reactor()
reaper = Reaper(reactor)

def spawn(code, orphans=0):
    pid = os.fork()
    if pid == 0:
        for _ in range(orphans):
            if os.fork() == 0:
                time.sleep(0.02 * random.random())
                os._exit(99)
        os._exit(code)
    return pid
"""


def play(scene: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", SCENE + textwrap.dedent(scene)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_storm_of_children_and_orphans() -> None:
    said = play("""
        found, wanted = {}, {}
        for number in range(300):
            pid = spawn(number % 90, orphans=2)
            wanted[pid] = number % 90
            reaper.adopt(pid, lambda status, pid=pid: found.__setitem__(pid, os.waitstatus_to_exitcode(status)))
            reactor.turn(0)
        until = time.monotonic() + 30
        while len(found) < 300 and time.monotonic() < until:
            reactor.turn(0.05)
        assert found == wanted, (len(found), len(wanted))
        while time.monotonic() < until:
            reactor.turn(0.01)
            try:
                os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                break
        print("none left")
    """)
    assert said == "none left\n"


def test_a_signal_is_told_as_one() -> None:
    said = play("""
        pid = os.fork()
        if pid == 0:
            time.sleep(60)
        told = []
        reaper.adopt(pid, told.append)
        os.kill(pid, signal.SIGTERM)
        while not told:
            reactor.turn(1)
        print(os.WTERMSIG(told[0]))
    """)
    assert said == "15\n"


def test_one_that_ended_before_it_was_adopted_is_told_too() -> None:
    said = play("""
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        pid = spawn(7)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        told = []
        reaper.adopt(pid, told.append)
        until = time.monotonic() + 10
        while not told and time.monotonic() < until:
            reactor.turn(0.1)
        print(os.waitstatus_to_exitcode(told[0]))
    """)
    assert said == "7\n"


def test_what_is_no_child_is_refused() -> None:
    said = play("""
        try:
            reaper.adopt(1, print)
        except ChildProcessError:
            print("refused")
    """)
    assert said == "refused\n"


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs /proc")
def test_its_place_is_given_back() -> None:
    said = play("""
        reaper.close()
        pid = spawn(3)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    """)
    assert said == "3\n"
