"""The launcher by its messages alone: what it refuses, what its children are, and that they die with it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from casemate.host import Bind, Jail

UIDS = 2_110_000_000
pytestmark = pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")


class Peer:
    """The daemon's end."""

    def __init__(self) -> None:
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            argv = [sys.executable, "-I", "-m", "casemate.host.launcher", str(theirs.fileno()), str(UIDS), "16"]
            self.process = subprocess.Popen(argv, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        self.socket.settimeout(20)

    def say(self, body: Any, *descriptors: int) -> None:
        message = body if isinstance(body, bytes) else json.dumps(body).encode()
        socket.send_fds(self.socket, [message], list(descriptors))

    def hear(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.socket.recv(65_536))
        return found

    def spawn(self, key: str, *command: str) -> None:
        """*command* of this host's /usr, in a jail; it writes to our stderr."""
        usr = os.open("/usr", os.O_PATH)
        try:
            body = {"do": "spawn", "id": key, "jail": Jail((Bind(3, "/usr"),)).to_json(), "command": list(command)}
            self.say(body, 2, usr)
        finally:
            os.close(usr)

    def close(self) -> None:
        self.socket.close()
        self.process.wait(20)


@pytest.fixture
def peer(no_trace: None) -> Iterator[Peer]:
    found = Peer()
    yield found
    found.close()


def test_a_command_runs_and_its_end_is_told(peer: Peer) -> None:
    peer.spawn("one", "/usr/bin/sh", "-c", "sleep 0.2; exit 7")
    spawned = peer.hear()
    assert spawned["spawned"] == "one"
    assert peer.hear() == {"exited": "one", "status": 7}


def test_what_it_runs_has_no_right_left(peer: Peer) -> None:
    peer.spawn("one", "/usr/bin/sleep", "60")
    pid = peer.hear()["pid"]
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}/comm").read_text() != "sleep\n":  # told of by bubblewrap before it has done its work
        assert time.monotonic() < deadline
        time.sleep(0.01)
    lines = (line.split(":\t") for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    found = {name: value for name, value, *_ in (line for line in lines if len(line) > 1)}
    assert {found[f"Cap{kind}"] for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {"0" * 16}
    assert found["NoNewPrivs"].strip() == "1"
    assert Path(f"/proc/{pid}/oom_score_adj").read_text() == "500\n"
    if os.geteuid() == 0:
        uids = {int(uid) for uid in found["Uid"].split()}
        assert len(uids) == 1
        assert uids <= set(range(UIDS, UIDS + 16))
        assert found["Groups"].strip() in ("", str(next(iter(uids))))
    peer.say({"do": "signal", "id": "one", "signal": "KILL"})
    assert peer.hear()["exited"] == "one"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root hands uids out")
def test_two_have_two_uids_and_a_uid_comes_back(peer: Peer) -> None:
    peer.spawn("one", "/usr/bin/sleep", "60")
    peer.spawn("two", "/usr/bin/sleep", "60")
    uids = {(told := peer.hear())["spawned"]: told["uid"] for _ in range(2)}
    assert uids["one"] != uids["two"]
    for key in ("one", "two"):
        peer.say({"do": "signal", "id": key, "signal": "KILL"})
    assert {peer.hear()["exited"] for _ in range(2)} == {"one", "two"}


@pytest.mark.parametrize(
    "body",
    [
        {"do": "spawn", "id": "x", "jail": [[3, "/usr"]], "command": ["/usr/bin/true"]},
        {"do": "spawn", "id": "x", "command": ["/usr/bin/true"]},
        {"do": "bootstrap", "id": "x", "recipe": "../../etc/passwd"},
        {"do": "chown", "id": "x", "path": "/etc/passwd"},
        {"do": "signal", "id": "x", "signal": "SEGV"},
    ],
)
def test_what_it_does_not_know_it_refuses(peer: Peer, body: dict[str, Any]) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    try:
        peer.say(body, null, null)
    finally:
        os.close(null)
    assert peer.hear()["failed"] == "x"
    peer.spawn("after", "/usr/bin/true")
    assert peer.hear().get("spawned", peer.process.pid)  # it lives


def test_when_the_daemon_goes_all_go(peer: Peer) -> None:
    peer.spawn("one", "/usr/bin/sleep", "60")
    pid = peer.hear()["pid"]
    peer.close()
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def with_argument(word: str) -> list[str]:
    """The processes that have *word* in their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if word.encode() in path.read_bytes():
                found.append(path.parent.name)
        except OSError:  # it has just ended
            continue
    return found


def test_when_the_daemon_goes_in_mid_start_all_go(no_trace: None) -> None:
    """Before the launcher waited for the pids, about one in forty of these stayed, for ever."""
    for attempt in range(25):
        peer, mark = Peer(), f"60.{os.getpid()}{attempt:03}"
        peer.spawn("one", "/usr/bin/sleep", mark)
        deadline = time.monotonic() + 10
        while not with_argument(mark):
            assert time.monotonic() < deadline
        time.sleep(attempt * 0.00025)
        peer.close()
        deadline = time.monotonic() + 5
        while left := with_argument(mark):
            assert time.monotonic() < deadline, left
            time.sleep(0.01)


def test_when_the_launcher_is_killed_all_go(peer: Peer) -> None:
    peer.spawn("one", "/usr/bin/sleep", "60")
    pid = peer.hear()["pid"]
    deadline = time.monotonic() + 10
    while not Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"/usr/bin/sleep"):
        assert time.monotonic() < deadline  # until then bubblewrap has not asked for its parent's death everywhere
    peer.process.kill()
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_the_jails_command_line_gives_nothing_by_default() -> None:
    words = Jail((Bind(3, "/usr"), Bind(4, "/guest/memory", writable=True))).argv(["/usr/bin/true"], 9)
    for name in ("user", "ipc", "pid", "net", "uts", "cgroup"):
        assert f"--unshare-{name}" in words
    assert words[words.index("--cap-drop") + 1] == "ALL"
    assert {"--die-with-parent", "--new-session", "--clearenv"} <= set(words)
    assert words[words.index("/guest/memory") - 2] == "--bind"
    assert words.count("--bind") == 1
    assert "--dev" not in words
    assert "--proc" not in words
