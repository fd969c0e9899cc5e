"""What a daemon that was taken over can't have the launcher's root do for it; and how a jailer's failure is told."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest
from tests.firecracker.jails import LIMITS, Jails, open_jails

from casemate.config import Settings
from casemate.errors import ToolFailed
from casemate.host import Bind, Jailer, approve, open_launcher, start_launcher
from casemate.host.approval import MARK
from casemate.vmm.firecracker.builds import Build

GROUP = f"casemate-test-asked-{os.getpid()}"
pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="Firecracker's jailer needs root"),
    pytest.mark.skipif(not os.access("/sys/fs/cgroup", os.W_OK), reason="control groups cannot be written here"),
]


@pytest.fixture
def jails(firecracker: Build, no_trace: None, tmp_path: Path) -> Iterator[Jails]:
    with open_jails(firecracker, tmp_path, GROUP) as found:
        yield found


def refused(jails: Jails, **how: Any) -> str:
    """Why, of a spawn that has to be refused before anything is started."""
    jails.ask(**how)
    told = jails.hear()
    assert told.keys() == {"failed", "why", "hint"}, told
    return str(told["why"])


def test_a_program_that_root_has_not_approved_is_not_run(jails: Jails, tmp_path: Path) -> None:
    """It would be root: the mark is on the file and of its content, and only root can make it."""
    program = tmp_path / "jailer"
    shutil.copy("/usr/bin/true", program)
    assert "has not approved" in refused(jails, program=program)
    shutil.copy(jails.binaries.jailer, program)
    assert "has not approved" in refused(jails, program=program), "the right one, and still nobody said so"
    approve(program, jails.binaries.jailer_sha256)
    assert jails.spawn("two", program=program).told["uid"]
    with open(program, "ab") as file:
        file.write(b"\n")
    assert "has not approved" in refused(jails, name="three", program=program), "it was approved with another content"
    os.chown(program, 65534, 65534)
    assert os.getxattr(program, MARK), "and it may belong to the daemon, as all of its home does"


def test_only_root_can_approve(tmp_path: Path) -> None:
    program = tmp_path / "jailer"
    program.touch()
    os.chown(program, 65534, 65534)
    os.chmod(tmp_path, 0o755)
    pid = os.fork()
    if pid == 0:
        try:
            os.setresuid(65534, 65534, 65534)
            descriptor = os.open(program, os.O_RDWR) if os.access(program, os.W_OK) else -1
            os.setxattr(descriptor if descriptor >= 0 else program, MARK, b"0" * 64)
        except PermissionError:
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@pytest.mark.parametrize(
    "place",
    ["/../escaped", "/a/../../escaped", "/", "", "relative", "/firecracker", "/dev", "/dev/kvm", "/run/x", "/old_root"],
)
def test_root_lays_nothing_out_where_it_is_not_to(jails: Jails, place: str) -> None:
    binds = [[5, place, True]]
    assert "is no place in a jail" in refused(jails, changed={"binds": binds})


@pytest.mark.parametrize("name", ["../one", "one/two", "", "One", "x" * 64, "-x"])
def test_a_name_leads_nowhere_else_either(jails: Jails, name: str) -> None:
    jails.ask("one", changed={"name": name})
    assert "is no name" in jails.hear()["why"]


def test_what_was_not_given_is_not_used(jails: Jails) -> None:
    for changed in ({"program": 1}, {"program": 9}, {"executable": 0}, {"binds": [[7, "/kernel", False]]}):
        assert "not given" in refused(jails, changed=changed)
    assert "kind" in refused(jails, changed={"kind": "chroot"})


@pytest.mark.parametrize(
    "word", ["--no-seccomp", "--seccomp-filter", "--seccomp-filter=/exchange/mine", "--enable-pci"]
)
def test_no_argument_takes_a_defence_away(jails: Jails, word: str) -> None:
    found = jails.ask("one", "--api-sock", "/exchange/api.sock", word)
    assert jails.hear()["exited"] == "one"
    assert "is not for a jailed VMM" in found.words()


@pytest.mark.parametrize("mode", [os.O_PATH, os.O_WRONLY], ids=["named", "writable"])
def test_what_the_jailer_copies_as_root_was_readable_for_the_daemon(jails: Jails, tmp_path: Path, mode: int) -> None:
    """A descriptor that only names a file, or can only write it, would have root read it."""
    exchange = tmp_path / "exchange"
    exchange.mkdir()
    (tmp_path / "firecracker").write_bytes(b"#!")
    says, said = os.pipe()
    given = [
        said,
        os.open(tmp_path / "firecracker", mode),
        os.open(jails.binaries.jailer, os.O_RDONLY),
        os.open(exchange, os.O_PATH),
    ]
    jail = Jailer((Bind(5, "/exchange", True),), "one", LIMITS, 3, 4)
    jails.say({"do": "spawn", "id": "one", "jail": jail.to_json(), "command": []}, *given)
    for descriptor in given:
        os.close(descriptor)
    assert jails.hear()["exited"] == "one"
    with open(says) as words:
        assert "open for reading" in words.read()


def test_a_socket_or_a_device_is_no_file_of_a_machine(jails: Jails, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        for path in (tmp_path / "socket", Path("/dev/null")):
            found = jails.ask("one", given={"/kernel": path})
            assert jails.hear()["exited"] == "one"
            assert "neither file nor folder" in found.words()


def test_memory_is_handed_out_only_of_one_whose_filters_are_on(jails: Jails, guests: Path, tmp_path: Path) -> None:
    """Before that it may be asked for as root's, or as one that nothing holds back."""
    template = jails.spawn("template", given={"/kernel": guests / "counter"})
    template.api().boot(Path("/kernel"))
    template.api().pause()
    template.api().save(state="/exchange/state", memory="/exchange/memory")
    for name in ("state", "memory"):
        (template.exchange / name).rename(tmp_path / name)
    clone = jails.spawn("clone", given={"/state": tmp_path / "state", "/memory": tmp_path / "memory"})
    before = ask_memory(jails, "clone", tmp_path / "memory")
    assert before == {"unmapped": "clone", "why": "it is not in its jail yet"}
    clone.api().load(Path("/state"), Path("/memory"))
    after = ask_memory(jails, "clone", tmp_path / "memory")
    assert after["bytes"] == 128 << 20


def ask_memory(jails: Jails, name: str, memory: Path) -> dict[str, Any]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs, memory.open("rb") as file:
        jails.say({"do": "memory", "id": name}, file.fileno(), theirs.fileno())
        told = jails.hear()
        if "mapped" in told:
            for descriptor in socket.recv_fds(ours, 1, 4, socket.MSG_DONTWAIT)[1]:
                os.close(descriptor)
        return told


def test_the_account_says_what_it_is(jails: Jails, guests: Path) -> None:
    found = jails.boot(guests / "counter")
    with jails.binaries.firecracker.open("rb") as file:  # any file that is a page long
        jails.say({"do": "attest", "id": "one"}, file.fileno())
        account = jails.hear()["account"]
    assert account["executable_sha256"] == jails.binaries.sha256
    assert (account["pid"], account["uid"]) == (found.pid, found.told["uid"])
    assert account["capabilities"] == 0
    assert account["seccomp_mode"] == 2
    assert account["namespaces"].keys() == {"cgroup", "ipc", "mnt", "net", "pid", "uts"}
    assert account["cgroup"] == f"/{GROUP}/one"
    assert account["limits"]["memory_bytes"] == LIMITS.memory_bytes


def failure(build: Build, folder: Path, changed: Mapping[str, Any]) -> ToolFailed:
    """Of a spawn by the daemon's end."""

    async def run() -> ToolFailed:
        settings = Settings(home=folder, uid_base=2_150_000_000, uid_count=4)
        says, said = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        opened = [os.open(path, os.O_RDONLY) for path in (build.firecracker, build.jailer, "/etc", "/etc/passwd")]
        try:
            async with open_launcher(start_launcher(settings)) as launcher:
                jail = replace(Jailer((), "one", LIMITS, 3, 4), **changed)
                with pytest.raises(ToolFailed) as raised:
                    async with launcher.spawn(jail, [], [said, *opened], says):
                        pytest.fail("it started")
                return raised.value
        finally:
            for descriptor in (says, said, *opened):
                os.close(descriptor)

    return anyio.run(run)


def test_a_jailer_that_fails_is_told_with_its_words(firecracker: Build, no_trace: None, tmp_path: Path) -> None:
    """It is given a folder to execute."""
    error = failure(firecracker, tmp_path, {"executable": 5})
    assert error.message.startswith("firecracker did not start: exit status ")
    assert "is not a file" in error.evidence["stderr"]
    assert "is not a file" in error.message


def test_a_program_that_cannot_be_executed_is_told(firecracker: Build, no_trace: None, tmp_path: Path) -> None:
    error = failure(firecracker, tmp_path, {"executable": 6})
    assert "Failed to exec into Firecracker" in error.message


def test_a_jailer_that_is_not_approved_is_a_sentence_with_a_hint(
    firecracker: Build, no_trace: None, tmp_path: Path
) -> None:
    error = failure(firecracker, tmp_path, {"program": 3})
    assert "root has not approved this jailer" in error.message
    assert error.hint == "as root: casemate vmm install firecracker"
