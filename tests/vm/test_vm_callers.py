"""Callers that go away, in every way there is: how long until their cell is interrupted, by the guest's own clock."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from vm_world import Daemon, home_like, run_daemon

from casemate.errors import FileRefused
from casemate.sdk import Client, Keys, Sandbox

pytestmark = pytest.mark.vm
WITHIN_S = 2.0
CODE = """
import time
try:
    print("begun", flush=True)
    WORK
except KeyboardInterrupt:
    with open("/tmp/told.new", "w") as file:
        file.write(str(time.time()))
    import os
    os.rename("/tmp/told.new", "/tmp/told")
"""
SILENT, FLOODING = "time.sleep(60)", "while True: print('x' * 10_000)"
SDK_CLIENT = "import sys; from casemate.sdk import Sandbox; Sandbox.connect(sys.argv[1]).run_code(sys.argv[2])"
RAW_CLIENT = """
import socket, sys
client = socket.socket(socket.AF_UNIX)
client.connect(sys.argv[1])
client.sendall(sys.argv[2].encode())
while client.recv(65536):
    pass
"""


@pytest.fixture(scope="module")
def remote(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with run_daemon(home_like(built, tmp_path_factory.mktemp("callers")), CASEMATE_LISTEN="127.0.0.1:0") as daemon:
        yield daemon


@pytest.fixture(scope="module")
def key(remote: Daemon) -> str:
    with Client(remote.url) as local:
        return str(Keys(local).create(scopes=("*",))["key"])


@pytest.fixture(scope="module")
def lasting(remote: Daemon) -> Iterator[Sandbox]:
    with Sandbox.create(url=remote.url) as sandbox:
        sandbox.run_code("1")
        yield sandbox


@pytest.fixture
def sandbox(lasting: Sandbox) -> Sandbox:
    lasting.commands.run("rm -f /tmp/told")
    lasting.run_code("kept = 41")
    return lasting


def request_of(sandbox: Sandbox, work: str, key: str | None) -> bytes:
    body = json.dumps({"code": CODE.replace("WORK", work)})
    head = f"POST /v1/sandboxes/{sandbox.id}/code HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: {len(body)}\r\n"
    return (head + (f"authorization: Bearer {key}\r\n" if key else "") + "\r\n" + body).encode()


def connected(remote: Daemon, sandbox: Sandbox, work: str, key: str | None) -> socket.socket:
    """A socket on which a cell was asked for and has begun."""
    if key is None:
        client = socket.socket(socket.AF_UNIX)
        client.connect(f"{remote.home}/run/daemon.sock")
    else:
        assert remote.listen is not None
        host, _, port = remote.listen.rpartition(":")
        client = socket.create_connection((host, int(port)))
    client.sendall(request_of(sandbox, work, key))
    client.settimeout(20)
    heard = b""
    while b'"stdout"' not in heard:
        heard += client.recv(65_536)
    return client


def assert_told(sandbox: Sandbox, begin: float, within_s: float = WITHIN_S) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            told_s = float(sandbox.files.read_text("/tmp/told")) - begin
            break
        except FileRefused:
            assert time.monotonic() < deadline, "it was never interrupted"
            time.sleep(0.05)
    print(f"interrupted after {told_s:.2f} s")
    assert told_s < within_s
    assert sandbox.run_code("kept + 1", timeout_s=20).text == "42"


@pytest.mark.parametrize("over_tcp", [False, True], ids=["unix", "tcp"])
@pytest.mark.parametrize("work", [SILENT, FLOODING], ids=["silent", "flooding"])
@pytest.mark.parametrize("how", ["close", "reset", "half-close"])
def test_a_connection_that_ends(
    remote: Daemon, sandbox: Sandbox, key: str, over_tcp: bool, work: str, how: str
) -> None:
    with connected(remote, sandbox, work, key if over_tcp else None) as client:
        begin = time.time()
        if how == "half-close":
            client.shutdown(socket.SHUT_WR)
            assert_told(sandbox, begin)
        elif how == "reset":
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    assert_told(sandbox, begin)


@pytest.mark.parametrize("work", [SILENT, FLOODING], ids=["silent", "flooding"])
def test_a_peer_whose_network_is_gone(remote: Daemon, sandbox: Sandbox, key: str, work: str) -> None:
    """A filter on its socket lets nothing in: its kernel acknowledges nothing any more."""
    with connected(remote, sandbox, work, key) as client:
        instruction = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))  # ret 0
        program = struct.pack("HxxxxxxP", 1, ctypes.addressof(instruction))
        client.setsockopt(socket.SOL_SOCKET, 26, program)  # SO_ATTACH_FILTER
        assert_told(sandbox, time.time(), WITHIN_S + 0.25)


@pytest.mark.parametrize("work", [SILENT, FLOODING], ids=["silent", "flooding"])
@pytest.mark.parametrize("how", ["sdk-unix", "raw-unix", "sdk-tcp"])
def test_a_process_that_is_stopped(remote: Daemon, sandbox: Sandbox, key: str, how: str, work: str) -> None:
    code = CODE.replace("WORK", work)
    if how == "raw-unix":
        argv = [RAW_CLIENT, f"{remote.home}/run/daemon.sock", request_of(sandbox, work, None).decode()]
    else:
        argv = [SDK_CLIENT, sandbox.id, code]
    url = f"http://{remote.listen}" if how == "sdk-tcp" else remote.url
    env = os.environ | {"CASEMATE_URL": url, "CASEMATE_API_KEY": key}
    process = subprocess.Popen([sys.executable, "-c", *argv], env=env)
    try:
        with Client(remote.url) as client:
            deadline = time.monotonic() + 20
            while True:
                cells = client.call("GET", f"/v1/sandboxes/{sandbox.id}/cells")["cells"]
                if any(cell["state"] == "running" for cell in cells):
                    break
                assert time.monotonic() < deadline
                time.sleep(0.05)
        time.sleep(0.7)  # it has begun, and one over TCP has said that it lives
        os.kill(process.pid, signal.SIGSTOP)
        assert_told(sandbox, time.time(), WITHIN_S + 0.25)
    finally:
        process.kill()
        process.wait()


def test_a_client_that_does_not_read_holds_its_cell_and_nobody_else(remote: Daemon, sandbox: Sandbox) -> None:
    other = sandbox.contexts.create()
    with connected(remote, sandbox, FLOODING, None):
        time.sleep(3)
        with pytest.raises(FileRefused):
            sandbox.files.read_text("/tmp/told")
        assert sandbox.run_code("1 + 1", context=other, timeout_s=20).text == "2"
        rss_kib = next(
            int(line.split()[1])
            for line in Path(f"/proc/{remote.pid}/status").read_text().splitlines()
            if line.startswith("VmRSS:")
        )
        assert rss_kib < 300 * 1024
        begin = time.time()
    assert_told(sandbox, begin)
    sandbox.contexts.remove(other)
