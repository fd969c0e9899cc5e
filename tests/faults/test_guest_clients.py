"""Clients that go in the middle of a stream, or stay and do not read: the guest's program ends, or waits at no cost."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable

import pytest
from tests.faults.world import assert_answers, resident_bytes, wait_processes
from tests.vm.vm_world import Daemon

from casemate.sdk import Sandbox

pytestmark = pytest.mark.vm
GONE_S = 5.0  # from a client's end to that of what it had under way
MOST_BYTES = 16 << 20


def follow(daemon: Daemon, sandbox: Sandbox, *argv: str) -> socket.socket:
    """A connection on which an exec's output comes, of which nothing was read but its beginning."""
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(20)
    client.connect(str(daemon.home / "run/daemon.sock"))
    body = json.dumps({"argv": argv}).encode()
    head = f"POST /v1/sandboxes/{sandbox.id}/execs HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    client.sendall(head.encode() + body)
    began = b""
    while b'"started"' not in began:
        piece = client.recv(1024)
        assert piece, began
        began += piece
    return client


def reset(client: socket.socket) -> None:
    client.close()  # with bytes in it that nobody read: the daemon's next write is refused


def half_close(client: socket.socket) -> None:
    client.shutdown(socket.SHUT_WR)


@pytest.mark.parametrize("leave", [reset, half_close])
@pytest.mark.parametrize("program", ["cat /dev/zero", "exec sleep 600"], ids=["loud", "quiet"])
def test_a_client_that_goes_ends_what_it_had(
    sandbox: Sandbox, daemon: Daemon, leave: Callable[[socket.socket], None], program: str
) -> None:
    client = follow(daemon, sandbox, "sh", "-c", program)
    with client:
        leave(client)
        wait_processes(sandbox, "sleep" if "sleep" in program else "cat", at_most=0, within_s=GONE_S)
    assert_answers(sandbox)
    assert not [known for known in sandbox.commands.list() if known["running"] and "-c" in known["argv"][1:2]][1:]


def test_a_client_that_does_not_read_costs_nothing(sandbox: Sandbox, daemon: Daemon) -> None:
    """As one that was stopped: it holds up its own program, and the daemon keeps a window of it."""
    before = resident_bytes(daemon.pid)
    clients = [follow(daemon, sandbox, "cat", "/dev/zero") for _ in range(8)]
    time.sleep(2)
    assert_answers(sandbox)
    assert resident_bytes(daemon.pid) - before < MOST_BYTES
    for client in clients:
        client.close()
    wait_processes(sandbox, "cat", at_most=0, within_s=GONE_S)
