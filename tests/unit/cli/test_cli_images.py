"""image, top, inspect, config, completion: against the SDK's fake daemon, as processes."""

from __future__ import annotations

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

CLI = [sys.executable, "-m", "casemate.cli"]


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDaemon]:
    monkeypatch.setenv("CASEMATE_URL", f"unix://{tmp_path}/d.sock")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "boxes").mkdir()
    with serve(tmp_path / "d.sock", tmp_path / "boxes") as fake:
        yield fake


def casemate(*words: str, given: bytes = b"", **env: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*CLI, *words], input=given, capture_output=True, timeout=60, check=False, env=os.environ | env
    )


def on_terminal(*words: str, until: bytes, **env: str) -> bytes:
    """What a terminal shows of it: until *until* comes, then it gets a Ctrl-C unless it has ended."""
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [*CLI, *words], stdin=follower, stdout=follower, stderr=follower, env=os.environ | env, start_new_session=True
    )
    os.close(follower)
    shown, deadline = b"", time.monotonic() + 30
    try:
        while until not in shown:
            assert time.monotonic() < deadline, shown
            if select.select([leader], [], [], 0.1)[0]:
                try:
                    shown += os.read(leader, 65536)
                except OSError:  # EIO: it has ended
                    break
        return shown
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(20)
        os.close(leader)


def test_export_and_import(fake: FakeDaemon, tmp_path: Path) -> None:
    assert casemate("image", "export", "python", "-o", "x.tar").returncode == 0
    assert (tmp_path / "x.tar").read_bytes() == fake.bundle
    assert casemate("image", "export", "python").stdout == fake.bundle
    assert casemate("image", "import", "x.tar").stdout == b"Image python@2 is ready.\n"
    assert casemate("image", "import", "-", "--name", "mine", given=fake.bundle).stdout == b"Image mine@2 is ready.\n"
    done = casemate("image", "import", "-", given=b"x")
    assert (done.returncode, done.stderr.startswith(b"error: this is not an image")) == (1, True)
    assert b"No such file" in casemate("image", "import", "none.tar").stderr
    assert b"no such folder" in casemate("image", "export", "python", "-o", "none/x.tar").stderr
    assert casemate("image", "export", "nothing", "-o", "y.tar").returncode == 1
    assert not (tmp_path / "y.tar").exists()


def test_rm_prune_and_verify(fake: FakeDaemon) -> None:
    assert b"what 'python' means" in casemate("image", "rm", "python").stderr
    assert casemate("image", "rm", "-f", "python").stdout == b"Removed python: 1 MiB\n"
    assert casemate("image", "prune", "--dry-run").stdout.splitlines() == [
        b"snapshot s: nothing needs it (2 MiB)", b"Would free 2 MiB.",
    ]  # fmt: skip
    assert json.loads(casemate("image", "prune", "--json").stdout)["dry_run"] is False
    assert casemate("image", "verify").stdout == b"python@1: 2 files are whole\n"
    fake.sound = False
    done = casemate("image", "verify")
    assert done.returncode == 1
    assert done.stdout.splitlines()[0] == b"root: changed"
    assert done.stderr.startswith(b"error: 1 of 2 files of python@1 are broken")


def test_inspect_is_the_daemons_own_words(fake: FakeDaemon) -> None:
    made = json.loads(casemate("create", "--name", "work", "--json").stdout)
    pretty = casemate("inspect", "work").stdout
    assert json.loads(pretty) == made
    assert pretty.count(b"\n") > 10
    assert casemate("inspect", "work", "--json").stdout.count(b"\n") == 1


def test_top_once(fake: FakeDaemon) -> None:
    casemate("create", "--name", "work")
    casemate("create", "--name", "other")
    lines = casemate("top").stdout.decode().splitlines()
    assert re.split(r" {2,}", lines[0])[:5] == ["ID", "NAME", "IMAGE", "STATE", "CPU"]
    assert re.split(r" {2,}", lines[1])[1:7] == ["work", "python@1", "running", "25.0 %", "16 MiB", "256 of 512 MiB"]
    assert len(lines) == 3
    found = json.loads(casemate("top", "work", "--json").stdout)["sandboxes"]
    assert [(one["name"], one["cpu_percent"]) for one in found] == [("work", 25.0)]
    assert b"no running sandbox 'nobody'" in casemate("top", "nobody").stderr


def test_top_goes_on_on_a_terminal_until_ctrl_c(fake: FakeDaemon) -> None:
    casemate("create", "--name", "work")
    shown = on_terminal("top", "--interval", "0.2", until=b"AGE\r\n00000000000000000000000001  work")
    assert b"\x1b[H\x1b[J" in shown


def test_a_first_use_shows_its_progress_on_a_terminal_only(fake: FakeDaemon) -> None:
    shown = on_terminal("create", "--memory", "256", until=b"00000000000000000000000001")
    assert b"boot" in shown
    plain = on_terminal("create", "--memory", "256", until=b"00000000000000000000000002", NO_COLOR="1")
    assert not re.search(rb"\x1b\[[0-9;]*3[0-9]m", plain)
    done = casemate("create", "--memory", "256")
    assert (done.stdout, done.stderr) == (b"00000000000000000000000003\n", b"")
    refused = casemate("create", "--memory", "256", "--no-build")
    assert (refused.returncode, refused.stderr) == (1, "error: no snapshot — build one\n".encode())


def test_config_show_says_who_says_so(fake: FakeDaemon, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("memory_mib = 700\nvcpus = 2\n")
    env = {"CASEMATE_HOME": str(tmp_path), "CASEMATE_VCPUS": "3"}
    found = {one["name"]: one for one in json.loads(casemate("config", "show", "--json", **env).stdout)["settings"]}
    assert (found["vcpus"]["value"], found["vcpus"]["origin"], found["vcpus"]["source"]) == (3, "env", "CASEMATE_VCPUS")
    assert (found["memory_mib"]["value"], found["memory_mib"]["origin"]) == (700, "file")
    assert (found["disk_mib"]["value"], found["disk_mib"]["origin"]) == (1024, "default")
    assert (found["home"]["value"], found["home"]["origin"]) == (str(tmp_path), "env")
    assert b"memory_mib" in casemate("config", "show", **env).stdout
    daemons = json.loads(casemate("config", "show", "--daemon", "--json").stdout)["settings"]
    assert [(one["name"], one["origin"]) for one in daemons] == [("vcpus", "file")]


def completions(shell: str, line: str, **env: str) -> list[str]:
    words = line.split(" ")
    asked = {"_CASEMATE_COMPLETE": f"complete_{shell}", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    asked |= {"_TYPER_COMPLETE_ARGS": line, "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    done = casemate(**asked, **env)
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout.decode().split("\n")


def test_completion_knows_verbs_options_and_names(fake: FakeDaemon) -> None:
    casemate("create", "--name", "work")
    box = "00000000000000000000000001"
    assert completions("bash", "casemate im") == ["image", ""]
    assert "export" in completions("bash", "casemate image ")
    assert "--dry-run" in completions("bash", "casemate image prune --")
    assert completions("bash", "casemate kill ") == ["work", box, ""]
    assert completions("bash", "casemate kill w") == ["work", ""]
    assert completions("bash", "casemate exec ") == ["work", box, ""]
    assert completions("bash", "casemate image rm ") == ["python", "python@1", ""]
    assert completions("bash", "casemate run --image ") == ["python", "python@1", ""]
    assert '"work"' in "".join(completions("zsh", "casemate inspect w"))
    assert completions("fish", "casemate inspect w") == ["work", ""]


def test_completion_starts_no_daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CASEMATE_URL", raising=False)
    monkeypatch.setenv("CASEMATE_HOME", str(tmp_path))
    assert "".join(completions("bash", "casemate kill ")) == ""
    assert not (tmp_path / "run").exists()


def test_bash_takes_the_script(fake: FakeDaemon, tmp_path: Path) -> None:
    (tmp_path / "casemate").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m casemate.cli "$@"\n')
    (tmp_path / "casemate").chmod(0o755)
    casemate("create", "--name", "work")
    ask = "COMP_WORDS=(casemate kill w); COMP_CWORD=2; _casemate_completion casemate; echo ${COMPREPLY[*]}"
    script = f'eval "$(casemate completion bash)"; {ask}'
    env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", script], capture_output=True, timeout=30, check=False, env=env)
    assert (done.stdout, done.stderr) == (b"work\n", b"")
    for shell, mark in (("zsh", b"#compdef casemate"), ("fish", b"complete --command casemate")):
        assert mark in casemate("completion", shell).stdout
    assert casemate("completion", "tcsh").returncode == 2
