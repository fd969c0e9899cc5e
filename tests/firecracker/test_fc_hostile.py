"""What a VMM that was taken over can't do out of its jail: a program of ours in Firecracker's place tries it."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import stat
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest
from tests.firecracker.jails import LIMITS, Jails, open_jails

from casemate.vmm.firecracker.builds import Build

GROUP = f"casemate-test-hostile-{os.getpid()}"
SOURCE = Path(__file__).with_name("hostile.c")
KEY = 0x0CA5E
pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="Firecracker's jailer needs root"),
    pytest.mark.skipif(not os.access("/sys/fs/cgroup", os.W_OK), reason="control groups cannot be written here"),
    pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc"),
]


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("hostile") / "firecracker"
    subprocess.run(["gcc", "-static", "-O1", "-Wall", "-Wextra", "-Werror", SOURCE, "-o", made], check=True)
    return made


@pytest.fixture
def jails(firecracker: Build, no_trace: None, tmp_path: Path) -> Iterator[Jails]:
    with open_jails(firecracker, tmp_path, GROUP) as found:
        yield found


@pytest.fixture
def found(jails: Jails, hostile: Path, tmp_path: Path) -> Mapping[str, str]:
    """How each attempt ended: an errno's name, or what it got."""
    with ExitStack() as held:
        listener = held.enter_context(socket.create_server(("127.0.0.1", 0)))
        port = int(listener.getsockname()[1])
        abstract = held.enter_context(socket.socket(socket.AF_UNIX))
        abstract.bind(f"\0casemate-{port}")
        abstract.listen()
        target = held.enter_context(subprocess.Popen(["sleep", "60"]))
        held.callback(target.kill)
        segment = subprocess.run(["ipcmk", "-M", "4096"], check=True, capture_output=True, text=True)
        number = segment.stdout.split()[-1]
        held.callback(subprocess.run, ["ipcrm", "-m", number], check=True)
        keys = [line.split() for line in Path("/proc/sysvipc/shm").read_text().splitlines()[1:]]
        (key,) = (words[0] for words in keys if words[1] == number)
        words = _attempt(jails, hostile, tmp_path, str(port), str(target.pid), key)
    lines = (line.partition(" ")[::2] for line in words.splitlines() if not line.startswith("in "))
    result = {name: errno.errorcode[int(how)] if how.isdigit() else how for name, how in lines if how}
    root = sorted(line.split()[2] for line in words.splitlines() if line.startswith("in / "))
    return result | {"root": " ".join(root)}


def _attempt(jails: Jails, hostile: Path, folder: Path, *arguments: str) -> str:
    given, others = folder / "given", folder / "others"
    for path in (given, others):
        path.write_text("nothing for a VMM to change")
    given.chmod(0o666)
    others.chmod(0o600)
    os.chown(others, 2_140_000_777, 2_140_000_777)
    exchange = folder / "one/exchange"
    exchange.mkdir(parents=True)
    exchange.chmod(0o777)
    os.mknod(exchange / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    (exchange / "null").chmod(0o666)
    shutil.copy(hostile, exchange / "program")
    vmm = jails.spawn("one", "--try", *arguments, executable=hostile, given={"/given": given, "/others": others})
    words = vmm.words_until("done\n")
    assert jails.end() == {"exited": "one", "status": 137, "out_of_memory": False}
    assert given.read_text() == others.read_text() == "nothing for a VMM to change"
    return words


def test_a_vmm_that_was_taken_over_stays_in_its_jail(found: Mapping[str, str]) -> None:
    refused = {
        **dict.fromkeys(("proc", "passwd", "oom"), "ENOENT"),
        **dict.fromkeys(("write-bind", "chmod-bind"), "EROFS"),
        **dict.fromkeys(("remount-bind", "unmount-bind", "mount", "chroot"), "EPERM"),
        "unlink-bind": "EBUSY",
        "read-others": "EACCES",
        **dict.fromkeys(("mknod-disk", "mknod-memory"), "EPERM"),
        **dict.fromkeys(("device-in-exchange", "execute-in-exchange"), "EACCES"),
        **dict.fromkeys(("setuid", "setgid", "setgroups", "capset", "user-namespace", "net-namespace"), "EPERM"),
        "kill-host": "ESRCH",
        **dict.fromkeys(("kill-first", "ptrace-host", "ptrace-first"), "EPERM"),
        **dict.fromkeys(("loopback", "abstract"), "ECONNREFUSED"),
        "shared-memory": "ENOENT",
        "tun": "EPERM",
        **dict.fromkeys(("more-files", "more-core", "lock"), "EPERM"),
        "priority": "EACCES",
    }
    assert {name: found[name] for name in refused} == refused


def test_what_it_has_is_what_it_was_given(found: Mapping[str, str]) -> None:
    assert found["root"] == "dev exchange firecracker firecracker.pid given others run"
    assert found["descriptors"] == "ok 3"
    assert found["environment"] == "ok 0"
    assert found["another-above"] == "ok 0"
    assert found["read-bind"].startswith("ok")
    assert found["kvm"].startswith("ok")
    assert found["parent"] == "ok 1"


def test_what_it_takes_has_an_end(found: Mapping[str, str]) -> None:
    assert int(found["fill-root"].split()[1]) <= 1 << 20
    assert int(found["fill-exchange"].split()[1]) == LIMITS.memory_bytes
    assert int(found["processes"].split()[1]) < LIMITS.pids
