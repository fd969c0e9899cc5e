"""What tests of bad input and bad luck stand on: one daemon for the whole run, a fresh clone for each test.

    guests_home → daemon → bystander (one sandbox that lives through all of it) → sandbox (the one that is ill-treated)

After each test the bystander has to answer: whatever a guest or a client did, the daemon still serves.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.vm.vm_world import Daemon, home_like, run_daemon

from casemate.sdk import Sandbox, SandboxInfo

END_S = 10.0  # from the deed to the record of the sandbox's end
AGENT_ANSWER_S = 1.0  # what an agent whose guest has just been through something may take


@pytest.fixture(scope="session")
def guests_home(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return home_like(built, tmp_path_factory.mktemp("casemate"))


@pytest.fixture(scope="session")
def daemon(guests_home: Path) -> Iterator[Daemon]:
    with run_daemon(guests_home) as daemon:
        yield daemon


@pytest.fixture(scope="session")
def bystander(daemon: Daemon) -> Iterator[Sandbox]:
    with Sandbox.create(url=daemon.url, idle_timeout_s=None) as sandbox:
        yield sandbox


@pytest.fixture
def sandbox(daemon: Daemon, bystander: Sandbox, no_trace: None) -> Iterator[Sandbox]:
    with Sandbox.create(url=daemon.url) as sandbox:
        yield sandbox
    assert bystander.commands.run("echo here").stdout == "here\n"


def assert_answers(sandbox: Sandbox, within_s: float = AGENT_ANSWER_S) -> None:
    """The agent takes a request and answers it in time. A stat: no process has to be made for it."""
    started = time.monotonic()
    assert sandbox.files.stat("/").type == "dir"
    assert time.monotonic() - started < within_s


def wait_end(sandbox: Sandbox, within_s: float = END_S) -> SandboxInfo:
    """The sandbox as it was recorded when it had ended."""
    deadline = time.monotonic() + within_s
    while (info := sandbox.refresh()).state != "terminated":
        assert time.monotonic() < deadline, f"still {info.state} after {within_s:g} s"
        time.sleep(0.02)
    assert info.state_reason is not None
    return info


def wait_processes(sandbox: Sandbox, name: str, *, at_most: int, within_s: float = 10) -> None:
    """Until no more than so many programs of that name are left in the guest."""
    deadline = time.monotonic() + within_s
    count = f"ps -e -o comm= | grep -c -x {name}"
    while int(found := sandbox.commands.run(count, user="root").stdout) > at_most:
        assert time.monotonic() < deadline, f"{found.strip()} {name} after {within_s:g} s"


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def reason_code(info: SandboxInfo) -> str | None:
    return info.state_reason.code if info.state_reason else None
