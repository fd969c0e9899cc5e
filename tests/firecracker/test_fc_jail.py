"""The jail of a real Firecracker, as the kernel sees it."""

from __future__ import annotations

import hashlib
import os
import signal
import stat
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from tests.firecracker.guests import wait_for
from tests.firecracker.jails import LIMITS, UIDS, Jailed, Jails, open_jails

from casemate.host.cgroup import Trees
from casemate.vmm.firecracker.builds import Build

GROUP = f"casemate-test-fc-{os.getpid()}"
TREES = Trees.find(Path("/proc/self/mountinfo").read_text())
pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="Firecracker's jailer needs root"),
    pytest.mark.skipif(not os.access("/sys/fs/cgroup", os.W_OK), reason="control groups cannot be written here"),
]


@pytest.fixture
def jails(firecracker: Build, no_trace: None, tmp_path: Path) -> Iterator[Jails]:
    with open_jails(firecracker, tmp_path, GROUP) as found:
        yield found


@pytest.fixture
def idle(jails: Jails) -> Jailed:
    """A VMM without a machine."""
    found = jails.spawn()
    found.api()
    return found


def test_the_pid_that_is_told_is_that_of_the_vmm(jails: Jails) -> None:
    """At once: not the jailer's, which is root, and not that of the namespace's first process."""
    found = jails.spawn()
    uids, exe = found.status["Uid"].split(), os.readlink(found.process / "exe")
    assert set(uids) == {str(found.told["uid"])}
    assert exe == "/firecracker"
    assert found.status["NSpid"].split() == [str(found.pid), "2"]
    digest = hashlib.sha256((found.process / "exe").read_bytes()).hexdigest()
    assert digest == jails.binaries.sha256


def test_it_has_nothing_of_root(idle: Jailed) -> None:
    status = idle.status
    assert int(status["Uid"].split()[0]) in range(UIDS + 1, UIDS + 8)
    assert set(status["Gid"].split()) == set(status["Uid"].split())
    assert status["Groups"] == ""
    assert {status[f"Cap{kind}"] for kind in ("Inh", "Prm", "Eff", "Amb")} == {"0" * 16}
    assert status["NoNewPrivs"] == "1", "without it what is in the bounding set could be had"
    assert (idle.process / "environ").read_bytes() == b""
    assert (idle.process / "oom_score_adj").read_text() == "500\n"


def test_what_stands_around_it_has_no_right_either(idle: Jailed) -> None:
    first = Path(f"/proc/{idle.status['PPid']}")
    lines = dict(line.split(":\t", 1) for line in (first / "status").read_text().splitlines() if ":\t" in line)
    assert lines["NSpid"].split()[1] == "1"
    assert int(lines["CapEff"], 16) == 0
    assert int(lines["CapBnd"], 16) == int(idle.status["CapBnd"], 16) == 0x82010C3, "what the jailer needs"


def test_its_filters_are_on_in_every_thread_once_a_guest_runs(jails: Jails, guests: Path) -> None:
    found = jails.boot(guests / "counter")
    threads = [(path / "status").read_text() for path in (found.process / "task").iterdir()]
    assert len(threads) >= 3
    assert all("Seccomp:\t2\n" in thread for thread in threads)
    assert all("Seccomp_filters:\t2\n" in thread for thread in threads), "its own, beside ours"
    assert all("NoNewPrivs:\t1\n" in thread for thread in threads)


def test_a_filter_of_ours_is_on_before_its_own_are(idle: Jailed) -> None:
    threads = [(path / "status").read_text() for path in (idle.process / "task").iterdir()]
    assert all("Seccomp:\t2\n" in thread for thread in threads)
    assert any("Seccomp_filters:\t1\n" in thread for thread in threads)


def test_its_root_holds_what_was_given_and_what_the_jailer_made(jails: Jails, guests: Path) -> None:
    found = jails.spawn(given={"/kernel": guests / "counter", "/deep/er/one": guests / "counter"})
    found.api()
    root = found.process / "root"
    paths = {str(path.relative_to(root)) for path in root.rglob("*")}
    assert paths - {"dev/userfaultfd"} == {
        *("deep", "deep/er", "deep/er/one", "dev", "dev/kvm", "dev/net", "dev/net/tun", "dev/urandom"),
        *("exchange", "exchange/api.sock", "firecracker", "firecracker.pid", "kernel", "run"),
    }
    owned = {path for path in root.rglob("*") if path.lstat().st_uid == found.told["uid"]}
    assert {path for path in owned if stat.S_ISREG(path.lstat().st_mode)} == set()


def test_no_mount_of_the_hosts_is_among_its_mounts(jails: Jails, guests: Path) -> None:
    found = jails.spawn(given={"/kernel": guests / "counter"})
    lines = [line.split() for line in (found.process / "mountinfo").read_text().splitlines()]
    places = {line[4]: line for line in lines}
    assert set(places) == {"/", "/exchange", "/kernel"}
    assert all("shared:" not in word and "master:" not in word for line in lines for word in line)
    assert places["/"][3] == "/firecracker/one/root"
    assert {"rw", "nosuid"} <= set(places["/"][5].split(","))
    assert {"ro", "nosuid", "nodev", "noexec"} <= set(places["/kernel"][5].split(","))
    assert {"rw", "nosuid", "nodev", "noexec"} <= set(places["/exchange"][5].split(","))


def test_it_is_in_namespaces_of_its_own(idle: Jailed) -> None:
    for kind in ("cgroup", "ipc", "mnt", "net", "pid", "uts"):
        assert os.readlink(idle.process / "ns" / kind) != os.readlink(f"/proc/self/ns/{kind}"), kind
    devices = [line.split(":")[0].strip() for line in (idle.process / "net/dev").read_text().splitlines()[2:]]
    assert devices == ["lo"]


def test_it_is_in_its_group_with_limits_and_rlimits(idle: Jailed) -> None:
    paths = {line.split(":", 2)[2] for line in (idle.process / "cgroup").read_text().splitlines()}
    assert f"/{GROUP}/one" in paths
    for controller in ("memory", "cpu", "pids"):
        root, version = TREES.place(controller)
        assert str(idle.pid) in (root / GROUP / "one/cgroup.procs").read_text().split()
        for file, value in LIMITS.files(controller, version).items():
            assert (root / GROUP / "one" / file).read_text().strip() == value
    found = {line[:26].strip(): line[26:].split()[:2] for line in (idle.process / "limits").read_text().splitlines()}
    assert found["Max core file size"] == found["Max locked memory"] == ["0", "0"]
    assert found["Max open files"] == ["1024", "1024"]
    assert found["Max processes"] == ["512", "512"]
    assert found["Max file size"] == [str(LIMITS.memory_bytes)] * 2


def test_it_was_given_no_descriptor(idle: Jailed) -> None:
    targets = {os.readlink(path) for path in (idle.process / "fd").iterdir()}
    assert {target for target in targets if target.startswith("/")} == {"/dev/null"}
    pipes = {target for target in targets if target.startswith("pipe:")}
    assert pipes == {f"pipe:[{os.fstat(idle.said).st_ino}]"}, "where it says what it has to say"


def test_who_asked_for_it_can_speak_with_it_and_nobody_else(idle: Jailed) -> None:
    assert idle.api().do("GET", "/version") == {"firecracker_version": "1.12.1"}
    made = (idle.exchange / "api.sock").stat()
    assert made.st_uid == idle.told["uid"]
    assert stat.S_IMODE(made.st_mode) == 0o777, "the daemon has another uid than the VMM"


def test_killed_by_us_it_is_gone_with_all_of_its_jail(jails: Jails) -> None:
    before = Path("/proc/self/mountinfo").read_text()
    idle = jails.spawn()
    parent = int(idle.status["PPid"])
    assert jails.end() == {"exited": "one", "status": 128 + signal.SIGKILL, "out_of_memory": False}
    wait_for(lambda: not Path(f"/proc/{parent}").exists(), "the first process to be reaped by the host's")
    assert not any((tree / GROUP / "one").exists() for tree in TREES.roots())
    assert Path("/proc/self/mountinfo").read_text() == before
    (idle.exchange / "api.sock").unlink(missing_ok=True)  # the exchange folder is the daemon's to clean
    assert jails.spawn().told["spawned"] == "one", "nothing else is in the way of another of that name"


def test_its_mounts_reach_nobody_although_the_hosts_are_shared(
    firecracker: Build, no_trace: None, tmp_path: Path
) -> None:
    """As systemd has them; here they may be private to begin with."""
    shared = ("unshare", "-m", "sh", "-c", 'mount --make-rshared / && exec "$@"', "sh")
    with open_jails(firecracker, tmp_path, GROUP, shared) as jails:
        mounts = Path(f"/proc/{jails.process.pid}/mountinfo")
        wait_for(lambda: b"-I" in (mounts.parent / "cmdline").read_bytes().split(b"\0")[:2], "it to be the launcher")
        before = mounts.read_text()
        assert "shared:" in before
        jails.spawn().api()
        assert mounts.read_text() == before


def test_its_end_is_told_with_its_status(jails: Jails, idle: Jailed) -> None:
    os.kill(idle.pid, signal.SIGSEGV)
    assert jails.hear()["status"] == 150, "Firecracker's own for SIGSEGV, which it handles"


def test_when_the_launcher_is_killed_it_goes(jails: Jails, idle: Jailed) -> None:
    jails.process.kill()
    wait_for(lambda: not idle.process.exists(), "the end of the VMM")
    with open_jails(jails.binaries, jails.folder, GROUP) as following:
        following.say({"do": "sweep", "id": "x"})
        assert following.hear()["removed"] == ["one"]


def test_when_the_launcher_is_killed_in_mid_start_nothing_is_left(
    firecracker: Build, no_trace: None, tmp_path: Path
) -> None:
    for attempt in range(12):
        with open_jails(firecracker, tmp_path, GROUP) as early:
            early.ask(f"early-{attempt}")
            time.sleep(attempt * 0.004)
            early.process.kill()
    with open_jails(firecracker, tmp_path, GROUP) as following:
        following.say({"do": "sweep", "id": "x"})
        following.hear()
        assert not any((tree / GROUP).exists() and any((tree / GROUP).glob("early*/")) for tree in TREES.roots())


def test_when_the_daemon_goes_in_mid_start_nothing_is_left(firecracker: Build, no_trace: None, tmp_path: Path) -> None:
    for attempt in range(12):
        with open_jails(firecracker, tmp_path, GROUP) as early:
            early.ask(f"early-{attempt}")
            time.sleep(attempt * 0.004)
        assert early.process.returncode == 0


def test_killed_in_mid_start_its_end_is_told(jails: Jails) -> None:
    for attempt in range(12):
        jails.ask(f"early-{attempt}")
        time.sleep(attempt * 0.004)
        told = jails.end(f"early-{attempt}")
        if "spawned" in told:
            told = jails.hear()
        assert told["exited"] == f"early-{attempt}"


def is_in(found: Jailed, states: str) -> bool:
    return found.status["State"][0] in states


def test_stopped_and_going_on_is_the_vmm_itself(jails: Jails, guests: Path) -> None:
    found = jails.boot(guests / "counter")
    memory = found.api().memory()
    for word, runs, states in (("STOP", False, "T"), ("CONT", True, "RSD")):
        jails.say({"do": "signal", "id": "one", "signal": word})
        wait_for(partial(is_in, found, states), f"{word} to be obeyed")
        assert memory.runs() is runs


def test_two_have_two_uids_and_see_nothing_of_each_other(jails: Jails) -> None:
    one, two = jails.spawn("one"), jails.spawn("two")
    assert one.told["uid"] != two.told["uid"]
    assert os.readlink(one.process / "ns/net") != os.readlink(two.process / "ns/net")
    assert (one.process / "root").stat().st_dev != (two.process / "root").stat().st_dev


def test_a_group_that_is_full_ends_it(jails: Jails) -> None:
    """Of memory while the jailer copies, of processes before there is a jail."""
    found = jails.ask("memory", limits=replace(LIMITS, memory_bytes=2 << 20))
    told = jails.hear()
    assert (told["exited"], told["out_of_memory"]) == ("memory", True), found.words()
    found = jails.ask("processes", limits=replace(LIMITS, pids=2))
    told = jails.hear()
    assert (told["exited"], told["out_of_memory"]) == ("processes", False)
    assert told["status"] != 0
    assert "Resource temporarily unavailable" in found.words()


def test_a_name_in_use_and_a_range_in_use_up_are_refused(jails: Jails) -> None:
    uids = {jails.spawn(f"n-{number}").told["uid"] for number in range(7)}
    assert uids == set(range(UIDS + 1, UIDS + 8))
    jails.ask("n-0")
    assert "n-0 is running" in jails.hear()["why"]
    jails.ask("n-7")
    assert "every uid" in jails.hear()["why"]
    assert jails.end("n-3")["exited"] == "n-3"
    assert jails.spawn("n-8").told["uid"] == jails.asked[3].told["uid"]
