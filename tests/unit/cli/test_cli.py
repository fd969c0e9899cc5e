"""The command line as a user has it: a process, its streams, its exit status. The daemon is the SDK's fake."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.unit.sdk.fake_daemon import FakeDaemon, serve

WAIT_S = 10
CLI = [sys.executable, "-m", "casemate.cli"]


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDaemon]:
    monkeypatch.setenv("CASEMATE_URL", f"unix://{tmp_path}/d.sock")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "boxes").mkdir()
    with serve(tmp_path / "d.sock", tmp_path / "boxes") as fake:
        yield fake


def casemate(*words: str, stdin: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    given: dict[str, object] = {"stdin": subprocess.DEVNULL} if stdin is None else {"input": stdin}
    return subprocess.run([*CLI, *words], capture_output=True, timeout=60, check=False, **given)  # type: ignore[call-overload]


def start(*words: str, **streams: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen([*CLI, *words], **{"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, **streams})


def wait_until(condition: object) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def all_ended(fake: FakeDaemon) -> bool:
    return bool(fake.boxes) and all(box.ended.is_set() for box in fake.boxes.values())


def test_a_command_runs_with_its_files_and_arguments(fake: FakeDaemon, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_bytes(b"\0data")
    (tmp_path / "x.py").write_text(
        "import sys; open('out.bin', 'wb').write(open('in.txt', 'rb').read() * 2); print(sys.argv[1:], flush=True); "
        "sys.stderr.write('err'); sys.exit(3)"
    )
    done = casemate("run", "--put", "in.txt:in.txt", "--get", "out.bin:got.bin", "--", "python3", "-c",
                    (tmp_path / "x.py").read_text(), "--flag", "--", "-x")  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (3, b"['--flag', '--', '-x']\n", b"err")
    assert (tmp_path / "got.bin").read_bytes() == b"\0data\0data"
    assert all_ended(fake)


def test_a_script_is_uploaded(fake: FakeDaemon, tmp_path: Path) -> None:
    (tmp_path / "x.py").write_text("print('hello')")
    casemate("run", "x.py", "--flag")
    box = next(iter(fake.boxes.values()))
    assert fake.starts[-1]["script"] == "/home/user/x.py"
    assert fake.starts[-1]["argv"] == ["/home/user/x.py", "--flag"]
    assert (box.home / "home/user/x.py").read_text() == "print('hello')"


@pytest.mark.parametrize(
    ("script", "status"), [("exit 7", 7), ("kill -9 $$", 137), ("kill -TERM $$", 143), ("sleep 60", 124)]
)
def test_the_exit_status_is_the_guests(fake: FakeDaemon, script: str, status: int) -> None:
    done = casemate("run", "--timeout", "0.5", "--", "sh", "-c", script)
    assert done.returncode == status
    assert done.stderr == (b"casemate: timed out after 0.5 s\n" if status == 124 else b"")


def test_input_is_passed_on(fake: FakeDaemon) -> None:
    data = bytes(range(256)) * 4096
    assert casemate("run", "--", "cat", stdin=data).stdout == data
    assert casemate("run", "--", "true", stdin=data).returncode == 0
    assert casemate("run", "--", "wc", "-c").stdout.strip() == b"0"


def test_much_output_arrives_whole_in_flat_memory(fake: FakeDaemon) -> None:
    size_mib, sent = 64, hashlib.sha256()
    for _ in range(size_mib):
        sent.update(b"casemate" * 131_072)
    make = f"import sys\nfor _ in range({size_mib}): sys.stdout.buffer.write(b'casemate' * 131072)"
    process = start("run", "--", sys.executable, "-c", make)
    assert process.stdout is not None
    time.sleep(1)  # long enough for a reader without back-pressure to have taken it all
    got, status = hashlib.sha256(), Path(f"/proc/{process.pid}/status")
    highest_kib = 0  # from /proc: rusage counts what this process had before the child's exec
    while piece := process.stdout.read(2**20):
        got.update(piece)
        found = re.search(r"^VmHWM:\s+(\d+) kB", status.read_text(), re.MULTILINE)
        highest_kib = max(highest_kib, int(found[1]) if found else 0)
    assert process.wait(30) == 0
    process.stdout.close()
    assert got.digest() == sent.digest()
    assert 0 < highest_kib < 80 * 1024


def test_ctrl_c_is_the_guests_and_a_second_one_kills(fake: FakeDaemon) -> None:
    process = start("run", "--", "sh", "-c", "trap 'echo caught' INT; echo ready; while :; do sleep 0.1; done")
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == b"caught\n"
    process.send_signal(signal.SIGINT)
    assert process.wait(WAIT_S) == 137
    process.stdout.close()
    assert all_ended(fake)


def test_a_killed_client_takes_its_sandbox_along(fake: FakeDaemon) -> None:
    process = start("run", "--", "sh", "-c", "echo ready; sleep 60")
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.kill()
    process.wait()
    process.stdout.close()
    wait_until(lambda: all_ended(fake))


def test_a_reader_that_leaves_ends_it_quietly(fake: FakeDaemon) -> None:
    process = start("run", "--", "yes", stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(WAIT_S) == -signal.SIGPIPE
    assert process.stderr.read() == b""
    process.stderr.close()
    assert all_ended(fake)


def test_a_terminal_nobody_types_at_is_no_obstacle(fake: FakeDaemon) -> None:
    leader, follower = pty.openpty()
    try:
        done = subprocess.run(
            [*CLI, "run", "--", "echo", "done"],
            stdin=follower,
            capture_output=True,
            timeout=30,
            check=False,
            start_new_session=True,
        )
        assert (done.returncode, done.stdout) == (0, b"done\n")
        assert not select.select([leader], [], [], 0)[0]
    finally:
        os.close(leader)
        os.close(follower)


def test_timings_go_to_stderr(fake: FakeDaemon) -> None:
    done = casemate("run", "--timings", "--", "echo", "out")
    assert done.stdout == b"out\n"
    lines = done.stderr.decode().splitlines()
    assert [line.split(":")[0] for line in lines] == ["isolation", "restore", "first answer", "first exec"]
    assert lines[0].endswith("emulated (tcg)")
    assert lines[2].endswith(" 90 ms")


def test_the_life_of_a_sandbox(fake: FakeDaemon) -> None:
    made = json.loads(casemate("create", "--name", "work", "--json", "--label", "a=b").stdout)
    assert (made["name"], made["labels"]) == ("work", {"a": "b"})
    assert casemate("exec", "work", "--", "sh", "-c", "echo hello > note; cat note").stdout == b"hello\n"
    assert casemate("exec", "work", "cat", "note").stdout == b"hello\n"
    listed = json.loads(casemate("ps", "--json").stdout)["sandboxes"]
    assert [info["id"] for info in listed] == [made["id"]]
    assert made["id"].encode() in casemate("ps").stdout
    assert casemate("kill", "work").returncode == 0
    assert casemate("kill", "nobody", "work").returncode == 1
    assert json.loads(casemate("ps", "--json").stdout) == {"sandboxes": []}
    assert b"terminated (killed)" in casemate("ps", "--all").stdout


def test_images(fake: FakeDaemon) -> None:
    assert b"python@1" in casemate("image", "ls").stdout
    assert b"Image python@1 is ready." in casemate("image", "build", "python").stdout
    assert json.loads(casemate("image", "build", "--json").stdout) == {"name": "python", "version": 1}


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["run", "--image", "x", "--", "true"], 1, "error: there is no image 'x' — casemate image ls"),
        (["run", "none.py"], 1, "error: none.py: No such file or directory — "),
        (["run", "--env", "A-B=1", "--env", "NOT_SET_HERE", "--", "true"], 1, "error: --env NOT_SET_HERE: "),
        (["run", "--put", "a", "--", "true"], 1, "error: --put a: not HOST:GUEST — "),
        (["run", "--", "no-such-program"], 1, "error: no-such-program: No such file"),
        (["exec", "nobody", "--", "true"], 1, "error: there is no sandbox 'nobody' — "),
        (["run", "--nope"], 2, "error: No such option: --nope — see casemate run --help"),
        (["run"], 2, "error: Missing argument"),
        (["nope"], 2, "error: No such command 'nope'. — see casemate --help"),
    ],
)
def test_an_error_is_one_line(fake: FakeDaemon, words: list[str], status: int, said: str) -> None:
    done = casemate(*words)
    assert done.returncode == status
    assert done.stderr.decode().startswith(said)
    assert done.stderr.count(b"\n") == 1
    assert done.stdout == b""


def test_without_a_daemon(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CASEMATE_URL", f"unix://{tmp_path}/none.sock")
    done = casemate("ps")
    assert (done.returncode, done.stderr.count(b"\n")) == (1, 1)
    assert done.stderr.startswith(b"error: no daemon answers at unix://")
    monkeypatch.setenv("CASEMATE_DEBUG", "1")
    assert b"Traceback" in casemate("ps").stderr


def test_what_is_not_needed_is_not_imported() -> None:
    code = "import sys; from casemate.cli import main; main(['version']); print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert not loaded & {"httpx", "rich", "asyncio", "anyio", "casemate.cli.setup", "pydantic", "tomllib"}
