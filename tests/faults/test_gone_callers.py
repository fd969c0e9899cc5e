"""Whoever asked for a cell has gone: it is interrupted within two seconds by the guest's clock, and its state stays.

reset, half-closed    the connection says so
stopped               the process at the other end of the socket stands still (SIGSTOP)
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable

import pytest
from tests.vm.vm_world import Daemon

from casemate.sdk import Sandbox

pytestmark = pytest.mark.vm
INTERRUPTED_S = 2.0
SOON_S = 60.0
CELL = (
    "import time\n"
    "beats = []\n"
    "try:\n"
    "    print('began')\n"
    "    while True:\n"
    "        beats.append(time.time()); time.sleep(0.01)\n"
    "except KeyboardInterrupt:\n"
    "    interrupted_at = time.time()\n"
)


@pytest.fixture
def told(sandbox: Sandbox) -> Callable[[float], None]:
    """A check: the cell was interrupted so soon after *gone_at*, host and guest having one clock but for some ms."""

    def check(gone_at: float) -> None:
        answer = sandbox.run_code("interrupted_at", timeout_s=SOON_S)
        assert answer.text is not None, answer
        assert float(answer.text) - gone_at < INTERRUPTED_S

    return check


def begin(daemon: Daemon, sandbox: Sandbox) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(SOON_S)
    client.connect(str(daemon.home / "run/daemon.sock"))
    body = json.dumps({"code": CELL}).encode()
    head = f"POST /v1/sandboxes/{sandbox.id}/code HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    client.sendall(head.encode() + body)
    began = b""
    while b'"stdout"' not in began:
        piece = client.recv(4096)
        assert piece, began
        began += piece
    return client


def reset(client: socket.socket) -> None:
    client.close()


def half_close(client: socket.socket) -> None:
    client.shutdown(socket.SHUT_WR)


@pytest.mark.parametrize("leave", [reset, half_close])
def test_a_caller_that_goes_interrupts_its_cell(
    sandbox: Sandbox, daemon: Daemon, told: Callable[[float], None], leave: Callable[[socket.socket], None]
) -> None:
    with begin(daemon, sandbox) as client:
        gone_at = time.time()
        leave(client)
        told(gone_at)


def test_a_caller_that_is_stopped_interrupts_its_cell(
    sandbox: Sandbox, daemon: Daemon, told: Callable[[float], None]
) -> None:
    script = (
        "import sys\nfrom casemate.sdk import Sandbox\n"
        "Sandbox.connect(sys.argv[1]).run_code(sys.argv[2], on_stdout=lambda _: print('began', flush=True))"
    )
    caller = subprocess.Popen(
        [sys.executable, "-c", script, sandbox.id, CELL],
        stdout=subprocess.PIPE,
        env=os.environ | {"CASEMATE_URL": daemon.url},
    )
    try:
        assert caller.stdout is not None
        assert caller.stdout.readline() == b"began\n"
        gone_at = time.time()
        os.kill(caller.pid, signal.SIGSTOP)
        told(gone_at)
    finally:
        caller.kill()
        caller.wait()
        assert caller.stdout is not None
        caller.stdout.close()
