"""``casemate vmm``, as a process: no daemon is there, and none is started."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from tests.unit.vmm.installed import make_pair, make_program, needs_tools, put_build


def vmm(home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "casemate.cli", "vmm", *words],
        env=os.environ | {"CASEMATE_HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (folder := tmp_path / "source").mkdir()
    (programs := tmp_path / "programs").mkdir()
    for name, data in make_pair(partial(make_program, programs), "1.15.1").items():
        (folder / name).write_bytes(data)
    return folder


@needs_tools
def test_install_and_list(tmp_path: Path, source: Path) -> None:
    home = tmp_path / "home"
    assert vmm(home, "ls").stdout == "VMM  VERSION  BUILD  STATE  SIZE\n"
    done = vmm(home, "install", "firecracker", "--from", str(source))
    sha256 = hashlib.sha256((source / "firecracker").read_bytes()).hexdigest()
    assert (done.returncode, done.stderr) == (0, "")
    assert f"Firecracker 1.15.1 is installed (build {sha256[:12]})." in done.stdout
    assert "\x1b" not in done.stdout
    old = put_build(home / "vmm", "1.14.4", installed=False)
    rows = [line.split()[:4] for line in vmm(home, "ls").stdout.splitlines()[1:]]
    assert sorted(rows) == [
        ["firecracker", "1.14.4", old[:12], "kept"],
        ["firecracker", "1.15.1", sha256[:12], "installed"],
    ]
    told = json.loads(vmm(home, "install", "firecracker", "--from", str(source), "--json").stdout)
    assert (told["version"], told["sha256"], told["folder"]) == ("1.15.1", sha256, str(home / "vmm" / sha256))
    assert not (home / "run").exists()  # no daemon was started


def test_list_for_programs(tmp_path: Path) -> None:
    (tmp_path / "vmm" / ("a" * 64) / "usr").mkdir(parents=True)
    index = {"key": "", "usr": "", "version": "QEMU emulator version 10.0.2 (Debian 1:10.0.2)", "sha256": "a" * 64}
    (tmp_path / "vmm" / "current.json").write_text(json.dumps(index))
    (tmp_path / "vmm" / ("b" * 64) / "usr").mkdir(parents=True)
    (tmp_path / "vmm" / ".new-123").mkdir()
    found = json.loads(vmm(tmp_path, "ls", "--json").stdout)
    assert found["pinned"] == "1.15.1"
    assert [(one["vmm"], one["version"], one["sha256"][0], one["installed"]) for one in found["builds"]] == [
        ("qemu", "10.0.2", "a", True),
        ("qemu", None, "b", False),
    ]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["install", "firecracker", "--from", "/nowhere"], "error: there is no /nowhere — give a release's archive"),
        (["install", "firecracker", "--from", "/etc/passwd"], "error: /etc/passwd is no archive — give a release's"),
        (["install", "qemu"], "error: Invalid value for 'firecracker': 'qemu' is not one of 'firecracker'."),
        (["install"], "error: Missing argument 'firecracker'"),
    ],
)
def test_what_goes_wrong_is_one_line(tmp_path: Path, words: list[str], said: str) -> None:
    done = vmm(tmp_path / "home", *words)
    assert done.returncode in (1, 2)
    (line,) = done.stderr.splitlines()
    assert line.startswith(said)
    assert not (tmp_path / "home").exists()


@needs_tools
def test_a_bar_on_a_terminal(tmp_path: Path, source: Path) -> None:
    ours, theirs = pty.openpty()
    argv = [sys.executable, "-m", "casemate.cli", "vmm", "install", "firecracker", "--from", str(source)]
    env = os.environ | {"CASEMATE_HOME": str(tmp_path / "home"), "TERM": "xterm", "COLUMNS": "100"}
    env.pop("NO_COLOR", None)
    with subprocess.Popen(argv, env=env, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        said = b""
        while True:
            try:
                piece = os.read(ours, 4096)
            except OSError:  # the last of them has closed it
                break
            said += piece
        os.close(ours)
    assert process.returncode == 0
    assert b"\x1b" in said
    assert b"Firecracker 1.15.1 is installed" in said


def test_the_host_side_says_it_to_people_too(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "casemate.vmm", "install", "firecracker", "--from", "/nowhere"]
    env = os.environ | {"CASEMATE_HOME": str(tmp_path)}
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stdout == "reading /nowhere\n"
    assert done.stderr.startswith("error: there is no /nowhere")
