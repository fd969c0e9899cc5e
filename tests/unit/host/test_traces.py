"""The check itself: it sees what is ours, whoever holds it by now, and nothing of our neighbours'."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from tests.traces import Scope, Trace

from casemate.host.cgroup import Trees

SLEEPER = "import os, sys; os.fork() and os._exit(0); os.setsid(); print(os.getpid(), flush=True); os.close(1); "
SLEEPER += "import time; time.sleep(600)"  # what a daemon does that is killed: its child goes on without it


@contextmanager
def orphan(*words: str, temp: Path) -> Iterator[int]:
    """A process that is no descendant of ours any more, with *words* behind it in its command line."""
    argv = [sys.executable, "-c", SLEEPER, *words]
    pid = int(subprocess.check_output(argv, env=os.environ | {"TMPDIR": str(temp)}, timeout=60))
    try:
        yield pid
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        while Path(f"/proc/{pid}").exists():
            time.sleep(0.01)


@pytest.fixture
def group() -> Iterator[Path]:
    """A home's control group that somebody left."""
    roots = Trees.find(Path("/proc/self/mountinfo").read_text()).roots()
    folder = roots[0] / f"casemate-test-left-{os.getpid()}" if roots else Path("/")
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    yield folder
    folder.rmdir()


def test_an_orphan_is_ours(scope: Scope, no_trace: None) -> None:
    before = Trace.of_now(scope)
    with orphan(temp=scope.temp) as ours, orphan(temp=Path("/tmp/casemate-tests-of-others")) as theirs:
        assert Trace.of_now(scope).beyond(before) == {"processes": {ours}}
        assert theirs != ours


def test_a_group_nobody_answers_for_is_a_leak(scope: Scope, group: Path) -> None:
    assert str(group) in Trace.of_now(scope).cgroups


@pytest.mark.parametrize("mark", ["", "jail-"])
def test_a_group_that_a_test_makes_by_hand_is_that_pytests(scope: Scope, group: Path, mark: str) -> None:
    with orphan(temp=Path("/tmp/casemate-tests-of-others")) as theirs:
        made = group.with_name(f"casemate-test-{mark}{theirs}")
        made.mkdir()
        assert str(made) not in Trace.of_now(scope).cgroups
    assert str(made) not in Trace.of_now(scope).cgroups, "what it has left is no fault of a test of ours"
    made.rmdir()
    ours = group.with_name(f"casemate-test-{mark}{os.getpid()}")
    ours.mkdir()
    assert str(ours) in Trace.of_now(scope).cgroups
    ours.rmdir()


def test_a_group_is_its_living_launchers(scope: Scope, group: Path, no_trace: None) -> None:
    launcher = ("-m", "casemate.host.launcher", "7", "1", "2", group.name, "strict")
    machine = group / "one"
    machine.mkdir()
    before = Trace.of_now(scope)
    with orphan(*launcher, temp=Path("/tmp/casemate-tests-of-others")):
        assert not {str(group), str(machine)} & Trace.of_now(scope).cgroups
    with orphan(*launcher, temp=scope.temp) as ours:  # though its daemon is gone
        assert Trace.of_now(scope).beyond(before) == {"processes": {ours}, "cgroups": {str(machine)}}
    machine.rmdir()


def test_a_mount_is_whose_folder_it_is_in(tmp_path: Path, scope: Scope) -> None:
    top = scope.temp.parent
    assert scope.is_elsewhere(top / "casemate-tests-of-others" / "small")
    assert scope.is_elsewhere(top / "pytest-of-others" / "pytest-0" / "home0")
    ours = (scope.temp / "small", tmp_path / "home", top / "casemate-root", top, Path("/mnt/left"))
    assert not any(map(scope.is_elsewhere, ours))


def test_a_folder_in_our_tmpdir_is_a_leak(scope: Scope) -> None:
    left = scope.temp / "casemate-left"
    left.mkdir()
    assert Trace.of_now(scope).folders == {str(left)}
    left.rmdir()
