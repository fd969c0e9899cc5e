"""Programs that end badly, or do not end: the result says how, and the agent answers right afterwards."""

from __future__ import annotations

import time

import pytest
from tests.faults.world import assert_answers, resident_bytes, wait_processes
from tests.vm.vm_world import Daemon

from casemate.errors import FileRefused
from casemate.sdk import CodeOutOfMemory, Exited, OutOfMemory, Sandbox, Signaled, TimedOut

pytestmark = pytest.mark.vm
EAT = "python3 -c \"b = []\nwhile True: b.append(bytearray(b'x') * (1 << 20))\""
FORK_BOMB = "f() { f | f & }; f; sleep 60"
SEGFAULT = "import ctypes; ctypes.string_at(0)"


@pytest.mark.parametrize(
    ("command", "end"),
    [
        (["sh", "-c", "exit 7"], Exited(7)),
        (["python3", "-c", SEGFAULT], Signaled(11)),
        ("kill -9 $$", Signaled(9)),
        ("exec python3 -c 'import os; os.abort()'", Signaled(6)),
    ],
)
def test_the_end_is_told_as_it_was(sandbox: Sandbox, command: str | list[str], end: object) -> None:
    assert sandbox.commands.run(command).end == end
    assert_answers(sandbox)


@pytest.mark.parametrize("user", ["user", "root"])
def test_a_fork_bomb_ends_with_its_time(sandbox: Sandbox, user: str) -> None:
    started = time.monotonic()
    assert sandbox.commands.run(FORK_BOMB, user=user, timeout_s=3).end == TimedOut(3)
    assert time.monotonic() - started < 15
    assert_answers(sandbox)
    wait_processes(sandbox, "sh", at_most=1)  # the killed ones need some processor time to go


@pytest.mark.parametrize("user", ["user", "root"])
def test_all_memory_ends_the_program_alone(sandbox: Sandbox, user: str) -> None:
    assert sandbox.commands.run(EAT, user=user, timeout_s=60).end == OutOfMemory()
    assert_answers(sandbox)
    assert sandbox.commands.run("echo more").stdout == "more\n"


@pytest.mark.parametrize("place", ["/tmp", "/dev/shm"])
def test_a_folder_in_memory_has_an_end(sandbox: Sandbox, place: str) -> None:
    result = sandbox.commands.run(f"head -c 2G /dev/zero > {place}/big", timeout_s=60)
    assert (result.end, "No space left" in result.stderr) == (Exited(1), True)
    assert_answers(sandbox)
    assert sandbox.commands.run("echo more").stdout == "more\n"


@pytest.mark.slow
def test_memory_that_no_killed_program_gives_back(sandbox: Sandbox) -> None:
    """Files on tmpfs stay when their writer dies, and what the agent itself writes counts against no limit."""
    assert sandbox.commands.run("head -c 2G /dev/zero > /tmp/big", timeout_s=60).end == Exited(1)
    assert sandbox.commands.run("head -c 2G /dev/zero > /dev/shm/big", timeout_s=60).end == OutOfMemory()
    assert_answers(sandbox)
    with pytest.raises(FileRefused) as caught:
        sandbox.files.write("/run/big", (bytes(1 << 20) for _ in range(200)), user="root")
    assert caught.value.evidence["errno"] == "ENOMEM"
    assert_answers(sandbox)
    sandbox.files.remove("/tmp/big")
    assert sandbox.commands.run("echo more").stdout == "more\n"


def test_all_memory_in_code_that_was_run(sandbox: Sandbox) -> None:
    end = sandbox.run_code("b = []\nwhile True: b.append(bytearray(b'x') * (1 << 20))", timeout_s=60).end
    assert end == CodeOutOfMemory()
    assert_answers(sandbox)
    assert sandbox.run_code("1 + 1").text == "2"


def test_a_full_disk_is_the_programs_and_the_writers_to_hear_of(sandbox: Sandbox) -> None:
    free = int(sandbox.commands.run("df --output=avail -B1M . | tail -1").stdout)
    result = sandbox.commands.run(f"fallocate -l {free - 20}M big; head -c 1G /dev/zero >> big", timeout_s=100)
    assert (result.end, "No space left" in result.stderr) == (Exited(1), True)
    assert_answers(sandbox)
    with pytest.raises(FileRefused) as caught:
        sandbox.files.write("more", bytes(1 << 20))
    assert caught.value.evidence["errno"] == "ENOSPC"
    sandbox.commands.run("rm big")
    assert sandbox.files.write("more", bytes(1 << 20)) == 1 << 20


@pytest.mark.slow
def test_a_quarter_of_a_gibibyte_of_output_leaves_the_daemon_flat(sandbox: Sandbox, daemon: Daemon) -> None:
    script = "import os\nb = bytes(range(256)) * 4096\nfor n in range(256): os.write(1, b)"
    before = resident_bytes(daemon.pid)
    result = sandbox.commands.run(["python3", "-c", script], timeout_s=150)
    assert result.end == Exited(0)
    assert result.stdout_bytes == bytes(range(256)) * 8192  # 2 MiB: the first half of it and the last
    assert result.truncated_bytes == 2**28 - 2**21
    assert resident_bytes(daemon.pid) - before < 32 * 2**20


def test_a_program_that_closed_its_output_is_waited_for(sandbox: Sandbox) -> None:
    started = time.monotonic()
    result = sandbox.commands.run("exec >&- 2>&-; sleep 1; exit 3")
    assert result.end == Exited(3)
    assert time.monotonic() - started >= 1


def test_a_background_child_that_holds_the_pipes_delays_nobody(sandbox: Sandbox) -> None:
    started = time.monotonic()
    result = sandbox.commands.run("sleep 60 & echo started")
    assert (result.end, result.stdout) == (Exited(0), "started\n")
    assert time.monotonic() - started < 5
    assert sandbox.commands.run("pgrep -c sleep").stdout == "1\n"
