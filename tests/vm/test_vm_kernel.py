"""The kernel, driven by the real jupyter_client and nbclient; its sandbox is a real one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from vm_world import Daemon

from casemate.sdk import Sandbox

pytestmark = pytest.mark.vm
CASEMATE = [sys.executable, "-m", "casemate.cli"]
# In a process of its own: jupyter_client leaves sockets and loops for the collector, which pytest takes for errors.
DRIVER = Path(__file__).with_name("kernel_driver.py")


@pytest.fixture(scope="module")
def installed(daemon: Daemon, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return install(tmp_path_factory.mktemp("prefix"), daemon.url)


def install(prefix: Path, url: str) -> dict[str, str]:
    """The environment of a Jupyter that finds the kernel; the kernel's own *url* is in its kernelspec."""
    words = ["kernel", "install", "--name", "vm", "--display-name", "In a VM", "--prefix", str(prefix)]
    env = os.environ | {"CASEMATE_URL": url}
    done = subprocess.run([*CASEMATE, *words], env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return env | {"JUPYTER_PATH": str(prefix / "share/jupyter"), "IPYTHONDIR": str(prefix / "ipython")}


def drive(env: dict[str, str], what: str, *words: str) -> None:
    argv = [sys.executable, str(DRIVER), what, *words]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]


def until(true: Callable[[], bool], limit_s: float = 10) -> None:
    deadline = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_protocol_and_a_restart(installed: dict[str, str], no_trace: None) -> None:
    """All that jupyter_client can ask; a sandbox that dies under it; nothing is left after the shutdown."""
    drive(installed, "protocol")
    assert not Sandbox.list()


def test_nbclient_runs_a_notebook(installed: dict[str, str], no_trace: None) -> None:
    drive(installed, "nbclient")
    assert not Sandbox.list()


@contextmanager
def started(env: dict[str, str]) -> Iterator[int]:
    with subprocess.Popen([sys.executable, str(DRIVER), "stay"], env=env, stdout=subprocess.PIPE) as process:
        assert process.stdout
        yield int(process.stdout.readline())
        process.wait(30)


def test_a_kernel_that_is_killed_leaves_no_sandbox(installed: dict[str, str], no_trace: None) -> None:
    with started(installed) as pid:
        assert len(Sandbox.list()) == 1
        os.kill(pid, signal.SIGKILL)
        until(lambda: not Sandbox.list())


def test_without_a_daemon_a_cell_fails_and_the_kernel_lives(tmp_path: Path) -> None:
    drive(install(tmp_path, f"unix://{tmp_path}/nobody.sock"), "nobody")
