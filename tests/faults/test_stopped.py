"""A daemon that is told to stop: it drains, says so to who comes meanwhile, and is gone within a minute."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fault_world import Running, chain_is_whole, daemon_on, events, folders, rows, vmms

from casemate.errors import CasemateError, DaemonUnavailable
from casemate.sdk import Client, Sandbox

pytestmark = [
    pytest.mark.vm,
    pytest.mark.slow,
    # httpcore leaves the socket of a refused connection to the garbage collector
    pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"),
]
MANY = 20
DRAIN_S = 60


def create(url: str) -> str:
    with Client(url) as client:
        return Sandbox.create(client=client).id


def knock(url: str, over: threading.Event, answers: list[CasemateError]) -> None:
    """Ask for sandboxes until the daemon is gone."""
    while not over.is_set():
        try:
            with Client(url) as client:
                Sandbox.create(client=client)
        except DaemonUnavailable:
            return
        except CasemateError as error:
            answers.append(error)


def test_stopped_with_twenty_sandboxes_running(home: Path, no_trace: None) -> None:
    with daemon_on(home) as running:
        url = str(running.client.target)
        with ThreadPoolExecutor(4) as threads:
            made = set(threads.map(create, [url] * MANY))
        assert len(vmms(home)) == MANY
        over, answers = threading.Event(), list[CasemateError]()
        began = time.monotonic()
        running.process.send_signal(signal.SIGTERM)
        knocking = threading.Thread(target=knock, args=(url, over, answers))
        knocking.start()
        try:
            assert running.wait_dead(DRAIN_S) == 0
        finally:
            over.set()
            knocking.join()
        assert time.monotonic() - began < DRAIN_S
    assert not vmms(home)
    assert folders(home) == set()
    ended = {i: json.loads(info) for i, info in rows(home, "SELECT id, info FROM sandboxes") if i in made}
    assert {info["state_reason"]["code"] for info in ended.values()} == {"daemon-stopped"}
    assert {info["state"] for info in ended.values()} == {"terminated"}
    assert made <= set(events(home, "sandbox.terminate")) & set(events(home, "sandbox.terminated"))
    refused = [error for error in answers if error.code == "host-full"]
    assert refused, answers
    assert all(error.evidence["reason"] == "daemon-stopped" for error in refused)
    assert chain_is_whole(home)


def casemate(home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "casemate.cli", "daemon", *words]
    env = {k: v for k, v in os.environ.items() if k != "CASEMATE_URL"} | {"CASEMATE_HOME": str(home)}
    return subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False, env=env)


def told(home: Path, verb: str) -> dict[str, Any]:
    done = casemate(home, verb, "--json")
    assert not done.stderr, done.stderr
    said = json.loads(done.stdout)
    assert isinstance(said, dict)
    return said


def test_status_restart_and_stop(home: Path) -> None:
    assert told(home, "status")["running"] is False
    assert casemate(home, "status").returncode == 1
    assert told(home, "stop") == {"stopped": False, "pid": None}
    with daemon_on(home) as running:
        with_one = Sandbox.create(client=running.client)
        status = told(home, "status")
        assert (status["running"], status["pid"], status["sandboxes"]) == (True, running.process.pid, 1)
        assert status["home"] == str(home)
        assert status["isolation"] == "emulated"
        assert "recovered" in status
        assert f"{running.process.pid}" in casemate(home, "status").stdout
        again = told(home, "restart")
        try:
            assert running.wait_dead() == 0
            assert again["stopped"] == running.process.pid != again["pid"]
            assert folders(home) == set()
            assert with_one.id in events(home, "sandbox.terminated")
        finally:
            stopped = told(home, "stop")
    assert stopped == {"stopped": True, "pid": again["pid"]}
    assert told(home, "status")["running"] is False


def test_one_that_is_only_being_made_ends_too(home: Path, no_trace: None) -> None:
    """Waiting for room for ten minutes does not keep a daemon for as long."""
    with daemon_on(home, CASEMATE_MEMORY_BUDGET_MIB="200", CASEMATE_ADMISSION_WAIT_S="600") as running:
        first = Sandbox.create(client=running.client)
        with ThreadPoolExecutor(1) as threads:
            waiting = threads.submit(refused, running)
            deadline = time.monotonic() + 10
            while running.client.health()["admission"]["waiting"] == 0:
                assert time.monotonic() < deadline
            running.process.send_signal(signal.SIGTERM)
            assert running.wait_dead(DRAIN_S) == 0
            assert waiting.result().code == "host-full"
        first.close()


def refused(running: Running) -> CasemateError:
    with Client(str(running.client.target)) as client, pytest.raises(CasemateError) as raised:
        Sandbox.create(client=client, create_timeout_s=600)
    return raised.value
