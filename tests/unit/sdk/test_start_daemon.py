"""Starting a daemon on demand, with a stand-in that keeps the daemon's promises: lock, one line, socket."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from tests.fair import fair_clock

from casemate import errors
from casemate.sdk import daemon as starting
from casemate.sdk.daemon import answers, ensure_daemon, start_daemon
from casemate.sdk.target import Target, find_target

STAND_IN = """
import fcntl, json, os, select, socket, sys, time
home, mode, ready = sys.argv[1], sys.argv[2], int(sys.argv[4])
def say(line):
    os.write(ready, json.dumps(line).encode() + b"\\n")
if mode == "dies":
    sys.exit("no reason given")
if mode == "silent":
    waiting = select.poll()
    waiting.register(ready, 0)
    waiting.poll(60_000)  # until nobody waits for us any more
    sys.exit()
if mode == "refuses":
    say({"status": "error", "error": {"code": "tool-missing", "message": "no VMM", "hint": "install it"}})
    sys.exit(1)
lock = open(f"{home}/run/daemon.lock", "a")
try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    say({"status": "error", "error": {"code": "daemon-running", "message": "there is one"}})
    sys.exit(1)
open(f"{home}/starts", "a").write(f"{os.getpid()}\\n")
time.sleep(0.2)
os.path.exists(f"{home}/run/daemon.sock") and os.unlink(f"{home}/run/daemon.sock")
listener = socket.socket(socket.AF_UNIX)
listener.bind(f"{home}/run/daemon.sock")
listener.listen(64)
say({"status": "ready", "socket": f"{home}/run/daemon.sock"})
os.close(ready)
while True:
    listener.accept()[0].close()
"""


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    home = tmp_path / "home"
    yield home
    for path in (home / "starts", home / "run/pid"):
        if path.exists():
            for pid in path.read_text().split():
                os.kill(int(pid), signal.SIGKILL)


def command(home: Path, mode: str) -> list[str]:
    return [sys.executable, "-c", STAND_IN, str(home), mode]


def test_it_is_started_once_and_is_nobodys_child(home: Path) -> None:
    start_daemon(home, command=command(home, "serves"))
    assert answers(home / "run/daemon.sock")
    start_daemon(home, command=command(home, "dies"))
    (pid,) = (home / "starts").read_text().split()
    assert Path(f"/proc/{pid}/stat").read_text().split()[5] != str(os.getsid(0))
    with pytest.raises(ChildProcessError):
        os.waitpid(int(pid), os.WNOHANG)


def test_of_many_starters_one_starts_and_all_use_it(home: Path) -> None:
    with ThreadPoolExecutor(6) as threads:
        list(threads.map(lambda _: start_daemon(home, command=command(home, "serves")), range(6)))
    assert len((home / "starts").read_text().split()) == 1


def test_a_dead_daemons_socket_is_no_daemon(home: Path) -> None:
    (home / "run").mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(home / "run/daemon.sock"))
    assert not answers(home / "run/daemon.sock")
    start_daemon(home, command=command(home, "serves"))
    assert answers(home / "run/daemon.sock")


def test_why_it_did_not_start(home: Path) -> None:
    with pytest.raises(errors.ToolMissing, match="no VMM"):
        start_daemon(home, command=command(home, "refuses"))
    with pytest.raises(errors.DaemonUnavailable, match="ended before it was ready") as caught:
        start_daemon(home, command=command(home, "dies"))
    assert "no reason given" in caught.value.evidence["log"]
    began = fair_clock()
    with pytest.raises(errors.DaemonUnavailable, match=r"within 0\.3 s"):
        start_daemon(home, timeout_s=0.3, command=command(home, "silent"))
    assert fair_clock() - began < 5


def test_a_home_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(errors.HostError, match="cannot be written"):
        start_daemon(tmp_path / "file/home")


def test_what_was_named_is_not_started(tmp_path: Path) -> None:
    with pytest.raises(errors.DaemonUnavailable, match="no daemon answers") as caught:
        ensure_daemon(Target("http://casemate", tmp_path / "none.sock"))
    assert caught.value.retry is errors.Retry.SAFE


def test_a_grown_log_is_put_aside(home: Path) -> None:
    (home / "run").mkdir(parents=True)
    (home / "run/daemon.log").write_bytes(b"x" * (2**20 + 1))
    start_daemon(home, command=command(home, "serves"))
    assert (home / "run/daemon.log.1").stat().st_size == 2**20 + 1
    assert (home / "run/daemon.log").stat().st_size == 0


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({"CASEMATE_URL": "unix:///a/b.sock"}, Target("http://casemate", Path("/a/b.sock"))),
        ({"CASEMATE_URL": "https://host:8000/"}, Target("https://host:8000")),
        ({"CASEMATE_HOME": "/h"}, Target("http://casemate", Path("/h/run/daemon.sock"), Path("/h"))),
    ],
)
def test_where_the_daemon_is(env: dict[str, str], expected: Target) -> None:
    assert find_target(None, env) == expected
    assert json.dumps(str(expected))


def test_one_with_a_full_queue_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "busy.sock"
    with socket.socket(socket.AF_UNIX) as busy, ExitStack() as held:
        busy.bind(str(path))
        busy.listen(0)
        held.enter_context(socket.socket(socket.AF_UNIX)).connect(str(path))
        monkeypatch.setattr(starting, "BUSY_S", 0.1)
        with pytest.raises(errors.DaemonUnavailable, match="takes no connection"):
            answers(path)
        monkeypatch.setattr(starting, "BUSY_S", 10.0)
        with ThreadPoolExecutor() as threads:
            asked = threads.submit(answers, path)
            time.sleep(0.1)
            busy.accept()[0].close()
            assert asked.result(10)
