"""An object without code that calls what it names, when something loads it."""

from __future__ import annotations

import platform
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from casemate.runtime.calling_object import calling

LOAD = "import ctypes, sys; ctypes.CDLL(sys.argv[1]); print('loaded')"


def load(path: Path, function: str) -> subprocess.CompletedProcess[str]:
    path.write_bytes(calling(function))
    return subprocess.run([sys.executable, "-c", LOAD, str(path)], capture_output=True, text=True, check=False)


def test_it_calls_what_it_names(tmp_path: Path) -> None:
    assert load(tmp_path / "one.so", "abort").returncode == -signal.SIGABRT
    other = load(tmp_path / "other.so", "getpid")
    assert (other.returncode, other.stdout) == (0, "loaded\n")


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    done = load(tmp_path / "one.so", "no_such_function")
    assert done.returncode == 1
    assert "no_such_function" in done.stderr


def test_every_name_has_its_place() -> None:
    for length in range(1, 40):
        assert len(calling("f" * length)) % 8 == 0
    assert calling("f", "aarch64") != calling("f", "x86_64") == calling("f", platform.machine())


def test_an_unknown_processor() -> None:
    with pytest.raises(KeyError):
        calling("abort", "pdp11")
