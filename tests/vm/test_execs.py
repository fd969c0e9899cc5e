"""Programs in a real guest: how they end, what they may, what reaches them."""

from __future__ import annotations

import hashlib
import time

import pytest

from casemate.errors import ExecRefused
from casemate.sdk import Exited, Sandbox, Signaled, TimedOut

pytestmark = pytest.mark.vm


@pytest.mark.parametrize(
    ("command", "end"),
    [
        ("true", Exited(0)),
        ("exit 7", Exited(7)),
        ("kill -9 $$", Signaled(9)),
        ("kill -SEGV $$", Signaled(11)),
    ],
)
def test_ends_are_told_apart(sandbox: Sandbox, command: str, end: object) -> None:
    assert sandbox.commands.run(command).end == end


def test_a_program_that_takes_too_long_is_ended(sandbox: Sandbox) -> None:
    started = time.monotonic()
    result = sandbox.commands.run("sleep 60 & sleep 60", timeout_s=1)
    assert result.end == TimedOut(1)
    assert time.monotonic() - started < 30
    assert "sleep" not in sandbox.commands.run("ps -e -o comm").stdout


def test_who_and_where_it_runs(sandbox: Sandbox) -> None:
    result = sandbox.commands.run("id -u; pwd; echo $HOME $LANG; date +%Z; umask; echo $A", env={"A": "b c"})
    assert result.stdout.splitlines() == ["1000", "/home/user", "/home/user C.UTF-8", "UTC", "0022", "b c"]
    assert sandbox.commands.run("id -u", user="root").stdout == "0\n"
    assert sandbox.commands.run("pwd", cwd="/tmp").stdout == "/tmp\n"


@pytest.mark.parametrize("wish", [{"user": "nobody-such"}, {"cwd": "/nowhere"}])
def test_what_cannot_start_says_why(sandbox: Sandbox, wish: dict[str, str]) -> None:
    with pytest.raises(ExecRefused):
        sandbox.commands.run("true", **wish)
    with pytest.raises(ExecRefused):
        sandbox.commands.run(["/no/such/program"])


def test_input_arrives_and_ends(sandbox: Sandbox) -> None:
    data = bytes(range(256)) * 8192
    result = sandbox.commands.run("sha256sum", stdin=data)
    assert result.stdout.split()[0] == hashlib.sha256(data).hexdigest()


def test_output_is_complete_and_exact(sandbox: Sandbox) -> None:
    digest, count = hashlib.sha256(), 0

    def take(piece: bytes) -> None:
        nonlocal count
        digest.update(piece)
        count += len(piece)

    script = "import sys; b = bytes(range(256)) * 4096\nfor _ in range(32): sys.stdout.buffer.write(b)"
    sandbox.commands.run(["python3", "-c", script], on_stdout=take)
    assert count == 32 * 2**20
    assert digest.hexdigest() == hashlib.sha256(bytes(range(256)) * 4096 * 32).hexdigest()


def test_there_is_no_network_and_nothing_waits_for_one(sandbox: Sandbox) -> None:
    script = """
import socket, time
def tried(act):
    start = time.monotonic()
    try:
        act()
    except OSError as error:
        return type(error).__name__, time.monotonic() - start
    return "reached", 0
print(*tried(lambda: socket.create_connection(("93.184.216.34", 443), 10)))
print(*tried(lambda: socket.getaddrinfo("example.com", 443)))
print(*tried(lambda: socket.create_connection(("169.254.169.254", 80), 10)))
"""
    execution = sandbox.run_code(script)
    assert execution.error is None, execution.error
    rows = [line.split() for line in execution.logs.stdout.splitlines()]
    assert [row[0] for row in rows] == ["OSError", "gaierror", "OSError"]
    assert all(float(row[1]) < 2 for row in rows), rows  # of the 10 s that they would wait


def test_devices_are_the_few_we_gave(sandbox: Sandbox) -> None:
    found = sandbox.commands.run("ls /sys/bus/virtio/drivers/*/ -d; ls /sys/class/net /sys/block", user="root")
    assert "eth" not in found.stdout
    assert "virtio_net" not in sandbox.commands.run("cat /proc/modules", user="root").stdout


def test_a_first_exec_finds_all_it_needs_in_memory(sandbox: Sandbox) -> None:
    """What starting a program reads was read before the snapshot: the root disk is not asked."""

    def reads() -> str | None:
        return sandbox.run_code("open('/sys/block/vda/stat').read().split()[0]").text

    before = reads()
    assert sandbox.commands.run(["/bin/true"]).end == Exited(0)
    assert reads() == before
