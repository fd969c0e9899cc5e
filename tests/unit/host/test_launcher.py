"""The launcher by its messages alone: what it refuses, what its children are, and that they die with it."""

from __future__ import annotations

import hashlib
import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from casemate.host import Bind, Jail, Limits
from casemate.host.account import bare
from casemate.host.cgroup import Trees

UIDS = 2_110_000_000
GROUP = f"casemate-test-{os.getpid()}"  # another pytest on this host has another
LIMITS = Limits(memory_bytes=64 << 20, cpu_percent=150, pids=40)
TREES = Trees.find(Path("/proc/self/mountinfo").read_text())
cgroups = pytest.mark.skipif(
    os.geteuid() != 0 or not os.access("/sys/fs/cgroup", os.W_OK), reason="control groups cannot be written here"
)
pytestmark = pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")


class Peer:
    """The daemon's end."""

    def __init__(self, how: str = "strict", group: str = GROUP, before: tuple[str, ...] = ()) -> None:
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            argv = [
                *before,
                sys.executable,
                "-I",
                "-m",
                "casemate.host.launcher",
                str(theirs.fileno()),
                str(UIDS),
                "16",
            ]
            self.process = subprocess.Popen([*argv, group, how], pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        self.socket.settimeout(20)

    def say(self, body: Any, *descriptors: int) -> None:
        message = body if isinstance(body, bytes) else json.dumps(body).encode()
        socket.send_fds(self.socket, [message], list(descriptors))

    def hear(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.socket.recv(65_536))
        return found

    def spawn(self, key: str, *command: str, extra: int | None = None, filter: str | None = None) -> None:
        """*command* of this host's /usr, in a jail; it writes to our stderr and has *extra* as its 3."""
        usr = os.open(f"/proc/{self.process.pid}/root/usr", os.O_PATH)  # a mount of the launcher's own namespace
        given = [usr] if extra is None else [extra, usr]
        try:
            jail = Jail((Bind(2 + len(given), "/usr"),), key, LIMITS, filter)
            self.say({"do": "spawn", "id": key, "jail": jail.to_json(), "command": list(command)}, 2, *given)
        finally:
            os.close(usr)

    def spawned(self, key: str, *command: str) -> str:
        """The folder in /proc of what was spawned."""
        self.spawn(key, *command)
        return f"/proc/{self.hear()['pid']}"

    def spawn_uid(self, key: str, *command: str) -> int:
        self.spawn(key, *command)
        return int(self.hear()["uid"])

    def sweep(self) -> list[str]:
        self.say({"do": "sweep", "id": "x"})
        return list(self.hear()["removed"])

    def close(self) -> None:
        self.socket.close()
        self.process.wait(20)


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def comm(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


@contextmanager
def a_launcher(how: str = "strict", group: str = GROUP, before: tuple[str, ...] = ()) -> Iterator[Peer]:
    found = Peer(how, group, before)
    try:
        yield found
    finally:
        found.close()


@pytest.fixture
def peer(no_trace: None) -> Iterator[Peer]:
    with a_launcher() as found:
        yield found


def test_a_command_runs_and_its_end_is_told(peer: Peer) -> None:
    peer.spawn("one", "/usr/bin/sh", "-c", "sleep 0.2; exit 7")
    spawned = peer.hear()
    assert spawned["spawned"] == "one"
    assert peer.hear() == {"exited": "one", "status": 7, "out_of_memory": False}


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
    wait_until(lambda: not Path(f"/proc/{pid}").exists())


def test_a_daemon_that_went_without_reading_is_still_cleaned_up_after(peer: Peer) -> None:
    """A socket closed with something unread in it reads as reset, not as ended."""
    pid = int(Path(peer.spawned("one", "/usr/bin/sleep", "60")).name)
    peer.say({"do": "no such thing", "id": "x"})
    wait_until(lambda: bool(select.select([peer.socket], [], [], 0)[0]))
    peer.close()
    assert peer.process.returncode == 0
    wait_until(lambda: not Path(f"/proc/{pid}").exists())


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
    wait_until(lambda: comm(pid) == "sleep")
    peer.process.kill()
    wait_until(lambda: not Path(f"/proc/{pid}").exists())
    with a_launcher() as next_one:
        assert next_one.sweep() == ["one"], "its group is left, for the next start to find"


def test_an_end_and_a_pid_that_are_told_in_one_moment(peer: Peer) -> None:
    """It learns of both at once: what is gone by then was none to ask about, and the launcher died of asking."""
    peer.spawn("other", "/usr/bin/sleep", "60")
    other = peer.hear()["pid"]
    children = Path(f"/proc/{peer.process.pid}/task/{peer.process.pid}/children")
    before = children.read_text().split()
    for attempt in range(5):
        peer.spawn(f"n-{attempt}", "/usr/bin/sleep", "60")
        wait_until(lambda: len(children.read_text().split()) > len(before))
        peer.process.send_signal(signal.SIGSTOP)
        (child,) = set(children.read_text().split()) - set(before)
        os.kill(int(child), signal.SIGKILL)
        wait_until(lambda child=child: "State:\tZ" in Path(f"/proc/{child}/status").read_text())  # type: ignore[misc]
        peer.process.send_signal(signal.SIGCONT)
        told = peer.hear()
        assert (peer.hear() if "spawned" in told else told)["exited"] == f"n-{attempt}"
    assert comm(other) == "sleep"


@cgroups
def test_what_outlives_a_killed_launcher_is_swept(peer: Peer) -> None:
    """bubblewrap's child asks for its death signal some time after its pid is known; killed before, it lives on."""
    for round in range(8):
        victim = Peer()
        victim.spawn(f"early-{round}", "/usr/bin/sleep", "60")
        victim.hear()
        victim.process.kill()
        victim.close()
    mine = Path(peer.spawned("mine", "/usr/bin/sleep", "60"))
    assert sorted(peer.sweep()) == [f"early-{round}" for round in range(8)]
    assert mine.exists(), "what runs is not swept"
    left = [path for tree in TREES.roots() for path in (tree / GROUP).iterdir() if path.is_dir()]
    assert {path.name for path in left} == {"mine"}
    assert peer.sweep() == []


@cgroups
def test_it_is_in_its_group_before_it_runs(peer: Peer) -> None:
    process = Path(peer.spawned("one", "/usr/bin/sleep", "60"))
    wait_until(lambda: comm(int(process.name)) == "sleep")
    paths = {line.split(":", 2)[1]: line.split(":", 2)[2] for line in (process / "cgroup").read_text().splitlines()}
    folders = {path for path in paths.values() if path.endswith(f"/{GROUP}/one")}
    assert len(folders) == 1, paths
    for controller in ("memory", "cpu", "pids"):
        root, version = TREES.place(controller)
        for file, value in LIMITS.files(controller, version).items():
            assert (root / GROUP / "one" / file).read_text().strip() == value


@cgroups
def test_all_its_memory_is_its_own_end(peer: Peer) -> None:
    """The group's limit ends what takes more, and the launcher goes on."""
    hog = "x = bytearray(200 << 20); print(len(x))"
    peer.spawn("one", "/usr/bin/python3", "-c", hog)
    peer.hear()
    assert peer.hear() == {"exited": "one", "status": 128 + signal.SIGKILL, "out_of_memory": True}
    peer.spawn("two", "/usr/bin/python3", "-c", "x = bytearray(8 << 20)")
    peer.hear()
    assert peer.hear() == {"exited": "two", "status": 0, "out_of_memory": False}


@cgroups
def test_a_fork_bomb_stays_in_its_group(peer: Peer) -> None:
    bomb = (
        "import os, time\nfor _ in range(500):\n try:\n  os.fork() or time.sleep(60)\n except OSError: time.sleep(60)"
    )
    peer.spawn("one", "/usr/bin/python3", "-c", bomb)
    peer.hear()
    pids = TREES.place("pids")[0] / GROUP / "one"
    wait_until(lambda: int((pids / "pids.current").read_text()) == LIMITS.pids)
    peer.say({"do": "signal", "id": "one", "signal": "KILL"})
    assert peer.hear()["exited"] == "one"
    assert not pids.exists(), "told when nothing of it is left"


@cgroups
def test_an_end_is_told_when_its_group_is_empty(peer: Peer) -> None:
    """Also when bubblewrap, which we wait for, is killed and what it watched over is not, yet."""
    process = Path(peer.spawned("one", "/usr/bin/sleep", "60"))
    wait_until(lambda: comm(int(process.name)) == "sleep")
    parent = int(re.findall(r"PPid:\s+(\d+)", (process / "status").read_text())[0])
    os.kill(int(process.name), signal.SIGSTOP)
    os.kill(parent, signal.SIGKILL)
    assert peer.hear()["exited"] == "one"
    assert not process.exists() or "State:\tZ" in (process / "status").read_text()


@cgroups
def test_without_control_groups_nothing_runs_unless_that_is_allowed() -> None:
    covered = ("unshare", "-m", "sh", "-c", 'mount -t tmpfs none /sys/fs/cgroup && exec "$@"', "sh")
    with a_launcher("strict", before=covered) as strict:
        strict.spawn("one", "/usr/bin/sleep", "60")
        told = strict.hear()
        assert told["failed"] == "one"
        assert "allow_weak_jail" in told["hint"]
    with a_launcher("weak", before=covered) as weak:
        assert weak.sweep() == []
        process = Path(weak.spawned("one", "/usr/bin/sleep", "60"))
        wait_until(lambda: comm(int(process.name)) == "sleep")
        data = next(x for x in (process / "limits").read_text().splitlines() if x.startswith("Max data size"))
        assert int(data.split()[3]) == LIMITS.memory_bytes + LIMITS.pids * (8 << 20)


def test_rlimits(peer: Peer) -> None:
    process = Path(peer.spawned("one", "/usr/bin/sleep", "60"))
    wait_until(lambda: comm(int(process.name)) == "sleep")
    found = {line[:26].strip(): line[26:].split() for line in (process / "limits").read_text().splitlines()}
    assert found["Max core file size"][:2] == ["0", "0"]
    assert found["Max locked memory"][:2] == ["0", "0"]
    assert found["Max open files"][:2] == ["1024", "1024"]
    assert found["Max file size"][1] == str(LIMITS.memory_bytes)
    if os.geteuid() == 0:
        assert found["Max processes"][1] == "512"


def test_the_filter_is_on_and_what_it_forbids_ends_the_process(peer: Peer) -> None:
    for key, script, status in (("one", "exit 5", 5), ("two", "/usr/bin/true; exit 5", 128 + signal.SIGSYS)):
        peer.spawn(key, "/usr/bin/sh", "-c", script, filter="qemu-tcg")
        told = peer.hear()
        if "spawned" in told:  # else it has ended before its pid could be looked up
            told = peer.hear()
        assert told == {"exited": key, "status": status, "out_of_memory": False}, "a VMM starts no program"
    peer.spawn("three", "/usr/bin/true", filter="no-such-list")
    assert "no filter" in peer.hear()["why"]


def test_the_kernels_account_of_a_child(peer: Peer, tmp_path: Path) -> None:
    """It knows a mapped file from another, a private mapping from a shared one, and what is nobody's."""
    (tmp_path / "memory").write_bytes(bytes(1 << 20))
    (tmp_path / "other").write_bytes(bytes(1 << 20))
    code = "import mmap, time; m = mmap.mmap(3, 1 << 20, access=mmap.ACCESS_COPY); time.sleep(60)"
    with open(tmp_path / "memory", "rb") as memory, open(tmp_path / "other", "rb") as other:
        peer.spawn("one", "/usr/bin/python3", "-I", "-c", code, extra=memory.fileno())
        pid = peer.hear()["pid"]
        wait_until(lambda: "/memory" in Path(f"/proc/{pid}/maps").read_text())
        peer.say({"do": "attest", "id": "one"}, memory.fileno())
        account = peer.hear()["account"]
        peer.say({"do": "attest", "id": "one"}, other.fileno())
        assert peer.hear()["account"]["private_bytes"] == 0
    assert (account["private_bytes"], account["shared_bytes"]) == (1 << 20, 0)
    assert account["executable_sha256"] == hashlib.sha256(Path("/usr/bin/python3").read_bytes()).hexdigest()
    assert account["pid"] == pid
    assert (account["seccomp_mode"], account["seccomp_filters"]) == (0, 0)
    assert account["cgroup"] == f"/{GROUP}/one"
    assert account["limits"]["memory_bytes"] == LIMITS.memory_bytes
    assert account["limits"]["cpu_percent"] == LIMITS.cpu_percent
    assert account["limits"]["pids"] == LIMITS.pids
    assert account["oom_score_adj"] == 500
    peer.say({"do": "attest", "id": "nobody"}, 2)
    assert peer.hear() == {"unattested": "nobody", "why": "it does not run"}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root hands uids out")
def test_two_launchers_never_share_a_uid(peer: Peer) -> None:
    """Two daemons with different homes and the same range: each takes what the other has not."""
    with a_launcher(group=f"{GROUP}-2") as second:
        uids = [p.spawn_uid(f"{name}", "/usr/bin/sleep", "60") for name in ("a", "b", "c") for p in (peer, second)]
    assert len(set(uids)) == len(uids)


def test_the_jails_command_line_gives_nothing_by_default() -> None:
    words = Jail((Bind(3, "/usr"), Bind(4, "/guest/memory", writable=True)), "one", LIMITS).argv(["/usr/bin/true"], 9)
    for name in ("user", "ipc", "pid", "net", "uts", "cgroup"):
        assert f"--unshare-{name}" in words
    assert words[words.index("--cap-drop") + 1] == "ALL"
    assert {"--die-with-parent", "--new-session", "--clearenv"} <= set(words)
    assert words[words.index("/guest/memory") - 2] == "--bind"
    assert words.count("--bind") == 1
    assert "--dev" not in words
    assert "--proc" not in words


def mapping(peer: Peer, key: str, memory: int, access: str = "COPY") -> None:
    """Spawn a process that has mapped the file behind *memory*."""
    code = f"import mmap, time; m = mmap.mmap(3, 1 << 20, access=mmap.ACCESS_{access}); time.sleep(60)"
    peer.spawn(key, "/usr/bin/python3", "-I", "-c", code, extra=memory)
    pid = peer.hear()["pid"]
    wait_until(lambda: "/memory" in Path(f"/proc/{pid}/maps").read_text())


def ask_memory(peer: Peer, key: str, memory: int) -> tuple[dict[str, Any], list[int]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs:
        peer.say({"do": "memory", "id": key}, memory, theirs.fileno())
        told = peer.hear()
        return told, socket.recv_fds(ours, 1, 4, socket.MSG_DONTWAIT)[1] if "mapped" in told else []


def test_the_memory_of_a_child_is_handed_out(peer: Peer, tmp_path: Path) -> None:
    (tmp_path / "memory").write_bytes(b"\7" * (1 << 20))
    (tmp_path / "other").write_bytes(bytes(1 << 20))
    with open(tmp_path / "memory", "rb") as memory, open(tmp_path / "other", "rb") as other:
        mapping(peer, "one", memory.fileno())
        told, (mem, pagemap) = ask_memory(peer, "one", memory.fileno())
        assert told["bytes"] == 1 << 20
        assert os.pread(mem, 4, told["start"]) == b"\7\7\7\7"
        assert len(os.pread(pagemap, 8, told["start"] // 4096 * 8)) == 8
        os.close(mem)
        os.close(pagemap)
        assert "not mapped" in ask_memory(peer, "one", other.fileno())[0]["why"]
        assert ask_memory(peer, "nobody", memory.fileno())[0] == {"unmapped": "nobody", "why": "it does not run"}


def test_a_shared_mapping_is_not_handed_out(peer: Peer, tmp_path: Path) -> None:
    (tmp_path / "memory").write_bytes(bytes(1 << 20))
    with open(tmp_path / "memory", "r+b") as memory:
        mapping(peer, "one", memory.fileno(), "WRITE")
        assert "as a clone does" in ask_memory(peer, "one", memory.fileno())[0]["why"]


def test_a_process_that_has_rights_left_is_not_in_its_jail(tmp_path: Path) -> None:
    """A taken-over daemon that asks in time gets bubblewrap's memory: with capabilities, and without the filter."""
    me = Path("/proc/self")
    if os.geteuid() == 0:
        assert not bare(me, filters=0)
    with subprocess.Popen(
        ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all", "sleep", "60"]
    ) as other:
        wait_until(lambda: comm(other.pid) == "sleep")
        assert not bare(Path(f"/proc/{other.pid}"), filters=1)
        other.kill()


def test_a_socket_that_takes_nothing_does_not_hold_it_up(peer: Peer, tmp_path: Path) -> None:
    (tmp_path / "memory").write_bytes(bytes(1 << 20))
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs, open(tmp_path / "memory", "rb") as memory:
        mapping(peer, "one", memory.fileno())
        with suppress(BlockingIOError):
            while theirs.send(bytes(1000), socket.MSG_DONTWAIT):
                pass
        peer.say({"do": "memory", "id": "one"}, memory.fileno(), theirs.fileno())
        assert peer.hear()["unmapped"] == "one"
        peer.say({"do": "memory", "id": "one"}, memory.fileno(), memory.fileno())
        assert peer.hear()["unmapped"] == "one", "a file is no socket"
