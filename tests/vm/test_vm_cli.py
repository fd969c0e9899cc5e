"""``casemate`` as its users run it: a process of its own, against a real guest."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.fair import fair_clock
from vm_world import Daemon

from casemate.sdk import Sandbox

pytestmark = pytest.mark.vm
CASEMATE = [sys.executable, "-m", "casemate.cli"]


def casemate(*words: str, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*CASEMATE, *words], input=given, capture_output=True, timeout=120, check=False)


@contextmanager
def started(*words: str) -> Iterator[subprocess.Popen[bytes]]:
    """A CLI whose first line of output has come; killed in the end whatever happens."""
    process = subprocess.Popen(
        [*CASEMATE, *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        assert process.stdout
        assert process.stdout.readline() == b"ready\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def sandboxes() -> set[str]:
    return {sandbox.id for sandbox in Sandbox.list()}


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (("--", "sh", "-c", "exit 7"), 7),
        (("--", "sh", "-c", "kill -TERM $$"), 128 + 15),
        (("--timeout", "1", "--", "sleep", "60"), 124),
    ],
)
def test_its_status_is_the_guests(daemon: Daemon, words: tuple[str, ...], status: int, no_trace: None) -> None:
    assert casemate("run", *words).returncode == status
    assert not sandboxes()


def test_input_output_and_errors_pass(daemon: Daemon, no_trace: None) -> None:
    done = casemate("run", "--env", "WORD=ready", "--", "sh", "-c", "cat; echo $WORD >&2", given=bytes(range(256)))
    assert (done.stdout, done.stderr, done.returncode) == (bytes(range(256)), b"ready\n", 0)


def test_a_script_is_run_as_python_runs_it(daemon: Daemon, tmp_path: Path, no_trace: None) -> None:
    script = tmp_path / "told.py"
    script.write_text(
        "import atexit, sys\n"
        "atexit.register(print, 'last')\n"
        "print(__name__, sys.argv, __file__, sys.path[0])\n"
        "def f(): raise ValueError('no')\n"
        "f()\n"
    )
    warm, cold = casemate("run", str(script), "a b"), casemate("run", "--cold", str(script), "a b")
    assert warm.stdout == cold.stdout == b"__main__ ['/home/user/told.py', 'a b'] /home/user/told.py /home/user\nlast\n"
    assert warm.stderr == cold.stderr
    assert warm.stderr.endswith(b"ValueError: no\n")
    assert warm.returncode == cold.returncode == 1


def test_files_go_in_and_come_out(daemon: Daemon, tmp_path: Path, no_trace: None) -> None:
    (tmp_path / "in").write_bytes(os.urandom(300_000))
    done = casemate("run", "--put", f"{tmp_path}/in:in", "--get", f"out:{tmp_path}/out", "--", "cp", "in", "out")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out").read_bytes() == (tmp_path / "in").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "out"]


def test_the_sandbox_goes_when_the_cli_is_killed(daemon: Daemon, no_trace: None) -> None:
    with started("run", "--", "sh", "-c", "echo ready; sleep 600") as process:
        assert len(sandboxes()) == 1
        process.kill()
        killed = fair_clock()
        while sandboxes():
            assert fair_clock() - killed < 2
            time.sleep(0.02)


def test_an_interrupt_reaches_the_guest(daemon: Daemon, no_trace: None) -> None:
    script = "trap 'echo caught; exit 9' INT; echo ready; while :; do sleep 0.1; done"
    with started("run", "--", "sh", "-c", script) as process:
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=30)
        assert (rest, process.returncode) == (b"caught\n", 9)
    assert not sandboxes()


def test_a_quarter_of_a_gibibyte_arrives_whole_and_fills_no_memory(daemon: Daemon, no_trace: None) -> None:
    """The guest's bytes have no period that a lost or doubled piece could hide in: each MiB begins with its number."""
    script = (
        "import sys\nrest = bytes(range(251)) * 4178\nrest = rest[: (1 << 20) - 4]\n"
        "for i in range(256): sys.stdout.buffer.write(i.to_bytes(4, 'big') + rest)"
    )
    rest = (bytes(range(251)) * 4178)[: (1 << 20) - 4]
    expected = hashlib.sha256()
    for number in range(256):
        expected.update(number.to_bytes(4, "big") + rest)
    before = resident_mib(daemon.pid)
    process = subprocess.Popen([*CASEMATE, "run", "--", "python3", "-c", script], stdout=subprocess.PIPE)
    assert process.stdout
    found, count, highest_mib = hashlib.sha256(), 0, 0
    try:
        while piece := process.stdout.read(1 << 20):
            found.update(piece)
            count += len(piece)
            highest_mib = max(highest_mib, resident_mib(daemon.pid) - before, resident_mib(process.pid) - 60)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    assert count == 256 << 20
    assert found.digest() == expected.digest()
    assert highest_mib < 64


def test_a_reader_that_stops_stops_the_writer(daemon: Daemon, no_trace: None) -> None:
    """Back-pressure: what the guest has written stays far below what it would like to."""
    script = "import os\nwhile True: n = os.write(1, bytes(65536)); open('/tmp/n', 'a').write('x')"
    with Sandbox.create() as sandbox:
        words = ["exec", sandbox.id, "--", "python3", "-c", script]
        process = subprocess.Popen([*CASEMATE, *words], stdout=subprocess.PIPE)
        try:
            assert process.stdout
            process.stdout.read(65536)
            written = -1
            deadline = fair_clock() + 60
            while (now := int(sandbox.commands.run("stat -c %s /tmp/n").stdout) * 65536) != written:
                assert fair_clock() < deadline, "it never stopped"
                written = now
                time.sleep(1)
            assert written < 32 << 20
        finally:
            process.kill()
            process.wait()
            process.stdout.close()


def resident_mib(pid: int) -> int:
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) >> 10
