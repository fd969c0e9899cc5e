"""Execs that outlive who started them, in a real guest; and the logs."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest

from casemate.errors import NotFound, RequestError, StateConflict
from casemate.sdk import Exited, Sandbox, Signaled
from casemate.sdk.results import end_to_json

pytestmark = pytest.mark.vm
CASEMATE = [sys.executable, "-m", "casemate.cli"]


def casemate(*words: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*CASEMATE, *words], stdin=subprocess.DEVNULL, capture_output=True, timeout=120, check=False)


def wait_end(sandbox: Sandbox, exec_id: str) -> dict[str, object]:
    until = time.monotonic() + 60
    while True:
        found = next(item for item in sandbox.commands.list() if item["exec_id"] == exec_id)
        if not found["running"]:
            return dict(found)
        assert time.monotonic() < until
        time.sleep(0.1)


def test_a_detached_command_is_taken_up_where_it_was_left(sandbox: Sandbox) -> None:
    script = "for n in 1 2 3 4 5 6 7 8 9; do echo line $n; sleep 0.3; done; echo err >&2; exit 5"
    with sandbox.commands.start(["sh", "-c", script], detach=True) as running:
        first = next(iter(running.output()))
        exec_id = running.exec_id
    wait_end(sandbox, exec_id)
    seen = first.offset + len(first.data)
    with sandbox.commands.attach(exec_id, stdout_offset=seen) as running:
        pieces = list(running.output())
        assert running.end is not None
        assert running.end.end == Exited(5)
    said = {stream: b"".join(p.data for p in pieces if p.stream == stream) for stream in ("stdout", "stderr")}
    assert first.data + said["stdout"] == b"".join(b"line %d\n" % n for n in range(1, 10))
    assert said["stderr"] == b"err\n"
    sandbox.commands.remove(exec_id)
    with pytest.raises(NotFound), sandbox.commands.attach(exec_id):
        pass


def test_the_command_line_does_it_too(sandbox: Sandbox) -> None:
    done = casemate("exec", "--detach", sandbox.id, "--", "sh", "-c", "echo out; echo err >&2; sleep 1; exit 9")
    exec_id = done.stdout.decode().strip()
    assert done.returncode == 0
    followed = casemate("attach", sandbox.id, exec_id)
    assert (followed.stdout, followed.stderr, followed.returncode) == (b"out\n", b"err\n", 9)
    again = casemate("attach", "--offset", "2", sandbox.id, exec_id)
    assert (again.stdout, again.returncode) == (b"t\n", 9)
    gone = casemate("attach", sandbox.id, "f" * 16)
    assert gone.returncode == 1
    assert gone.stderr.startswith(b"error: there is no exec")


def test_what_was_not_read_in_time_is_counted(sandbox: Sandbox) -> None:
    with sandbox.commands.start(["sh", "-c", "head -c 5000000 /dev/zero | tr '\\0' x"], detach=True) as running:
        exec_id = running.exec_id
    wait_end(sandbox, exec_id)
    followed = casemate("attach", sandbox.id, exec_id)
    assert 0 < len(followed.stdout) < 5_000_000
    lost = 5_000_000 - len(followed.stdout)
    assert followed.stderr == f"casemate: {lost} bytes of its stdout are no longer held\n".encode()
    with pytest.raises(RequestError), sandbox.commands.attach(exec_id, stdout_offset=5_000_001):
        pass


def test_a_running_one_is_signalled_not_forgotten(sandbox: Sandbox) -> None:
    with sandbox.commands.start(["sleep", "600"], detach=True) as running:
        exec_id = running.exec_id
    with pytest.raises(StateConflict):
        sandbox.commands.remove(exec_id)
    sandbox.commands.signal(exec_id, "TERM")
    assert wait_end(sandbox, exec_id)["end"] == {"kind": "signaled", "signal": 15}
    sandbox.commands.remove(exec_id)
    assert exec_id not in [item["exec_id"] for item in sandbox.commands.list()]


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("exit 7", {"kind": "exited", "code": 7}),
        ("kill -9 $$", {"kind": "signaled", "signal": 9}),
        ("sleep 60", {"kind": "timed-out", "after_s": 2}),
        ("python3 -c 'x = bytearray(2**30)'; sleep 0.1", None),
    ],
)
def test_ends_in_json(sandbox: Sandbox, command: str, said: dict[str, object] | None) -> None:
    result = sandbox.commands.run(command, timeout_s=2 if said and said["kind"] == "timed-out" else 60)
    body = json.loads(json.dumps(result.to_json()))
    if said is not None:
        assert body["end"] == said
    assert set(body) == {
        "end", "stdout", "stderr", "truncated_bytes", "duration_ms", "cpu_ms", "peak_memory_mib",
    }  # fmt: skip
    assert body["duration_ms"] > 0
    assert end_to_json(Signaled(9)) == {"kind": "signaled", "signal": 9}


def test_collected_output_is_the_first_and_the_last_half(sandbox: Sandbox) -> None:
    script = "import sys\nfor n in range(600_000): sys.stdout.write(f'{n:07}\\n')\nsys.stderr.write('e' * 10)"
    result = sandbox.commands.run(["python3", "-c", script])
    assert result.end == Exited(0)
    assert len(result.stdout_bytes) == 2 << 20
    assert result.stdout.startswith("0000000\n0000001\n")
    assert result.stdout.endswith("0599998\n0599999\n")
    assert result.truncated_bytes == 4_800_000 - (2 << 20)
    small = sandbox.commands.run("printf 0123456789", max_output_bytes=4)
    assert (small.stdout, small.truncated_bytes) == ("0189", 6)


def test_the_console_is_shown_twice_and_followed(sandbox: Sandbox) -> None:
    sandbox.commands.run("echo marker-one > /dev/kmsg; echo casemate-test > /dev/console", user="root", check=True)
    until = time.monotonic() + 20
    while b"casemate-test" not in casemate("logs", sandbox.id).stdout:
        assert time.monotonic() < until
    assert b"casemate-test" in casemate("logs", "--console", sandbox.id).stdout  # reading it took nothing away
    assert casemate("logs", "--agent", sandbox.id).stdout == b""
    with subprocess.Popen([*CASEMATE, "logs", "-f", sandbox.id], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout
            while b"casemate-test" not in process.stdout.readline():
                pass
            sandbox.commands.run("printf 'later\\033[31m\\n' > /dev/console", user="root", check=True)
            while (line := process.stdout.readline()) and b"later" not in line:
                pass
            assert line.strip() == b"later[31m"
            assert casemate("kill", sandbox.id).returncode == 0
            process.communicate(timeout=30)
            assert process.returncode == 0
        finally:
            process.kill()
