"""TCP into a real guest: what listens, connections, ``casemate forward``."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from tests.fair import fair_clock

from casemate.errors import PortRefused
from casemate.sdk import AsyncClient, AsyncSandbox, Sandbox

pytestmark = pytest.mark.vm
CASEMATE = [sys.executable, "-m", "casemate.cli"]
SIZE = 64 << 20
# Answers after the end of what it was told, which half-close has to carry; then sends as much back.
ECHO = """
import hashlib, os, socket, sys
with socket.create_server((sys.argv[1], int(sys.argv[2])), family=socket.AF_INET6 if ':' in sys.argv[1] else socket.AF_INET) as server:
    print('ready', flush=True)
    while True:
        there, _ = server.accept()
        if os.fork() == 0:
            seen, count = hashlib.sha256(), 0
            kept = []
            while piece := there.recv(1 << 16):
                seen.update(piece); kept.append(piece)
            there.sendall(seen.hexdigest().encode())
            for piece in kept: there.sendall(piece)
            os._exit(0)
        there.close()
"""  # noqa: E501


@contextmanager
def serving(sandbox: Sandbox, script: str, *argv: str) -> Iterator[None]:
    with sandbox.commands.start(["python3", "-c", script, *argv]) as running:
        assert next(iter(running.output())).data == b"ready\n"
        yield


@contextmanager
def forwarded(sandbox: Sandbox, ports: str) -> Iterator[tuple[str, int]]:
    process = subprocess.Popen(
        [*CASEMATE, "forward", sandbox.id, ports], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout
        line = process.stdout.readline()
        assert line, process.stderr and process.stderr.read()
        host, _, port = line.split()[0].rpartition(":")
        yield host, int(port)
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.communicate(timeout=10)
        finally:
            process.kill()
    assert process.returncode == 130


def exchange(address: tuple[str, int], data: bytes) -> bytes:
    with socket.create_connection(address, 30) as ours:
        ours.settimeout(100)
        ours.sendall(data)
        ours.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: ours.recv(1 << 20), b""))


def test_64_mib_pass_whole_both_ways_with_half_close(sandbox: Sandbox) -> None:
    data = os.urandom(1 << 20) * (SIZE >> 20)
    with serving(sandbox, ECHO, "127.0.0.1", "8000"), forwarded(sandbox, "0:8000") as address:
        got = exchange(address, data)
    assert got[:64].decode() == hashlib.sha256(data).hexdigest()
    assert hashlib.sha256(got[64:]).digest() == hashlib.sha256(data).digest()


def test_many_at_once_do_not_mix(sandbox: Sandbox) -> None:
    parts = [os.urandom(100_000 + n) for n in range(20)]
    got: list[bytes] = [b""] * len(parts)
    with serving(sandbox, ECHO, "0.0.0.0", "8001"), forwarded(sandbox, "0:8001") as address:

        def one(number: int) -> None:
            got[number] = exchange(address, parts[number])

        threads = [threading.Thread(target=one, args=(n,)) for n in range(len(parts))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(100)
    assert [answer[64:] for answer in got] == parts


def test_a_web_server_is_listed_and_answers(sandbox: Sandbox) -> None:
    sandbox.files.write("page", "hello")
    with sandbox.commands.start(["python3", "-m", "http.server", "--bind", "127.0.0.1", "8080"]):
        until = fair_clock() + 60
        while not (found := sandbox.ports.list()):
            assert fair_clock() < until
            time.sleep(0.1)
        assert [(port.port, port.address, port.uid) for port in found] == [(8080, "127.0.0.1", 1000)]
        done = subprocess.run([*CASEMATE, "ports", sandbox.id], capture_output=True, text=True, check=True)
        assert done.stdout.split() == ["PORT", "ADDRESS", "UID", "8080", "127.0.0.1", "1000"]
        with forwarded(sandbox, "0:8080") as (host, port):
            assert urllib.request.urlopen(f"http://{host}:{port}/page", timeout=30).read() == b"hello"


def test_a_port_on_the_other_loopback(sandbox: Sandbox) -> None:
    with serving(sandbox, ECHO, "::1", "8002"), sandbox.ports.connect(8002) as there:
        there.send(b"six")
        there.end()
        got = b"".join(iter(there.receive, None))
    assert got[64:] == b"six"


def test_nobody_listens_is_said_at_once(sandbox: Sandbox) -> None:
    started = fair_clock()
    with pytest.raises(PortRefused) as raised, sandbox.ports.connect(9):
        pass
    assert raised.value.evidence["errno"] == "ECONNREFUSED"
    assert fair_clock() - started < 5
    with forwarded(sandbox, "0:9") as address, socket.create_connection(address, 30) as ours:
        ours.settimeout(30)
        with pytest.raises(ConnectionResetError):
            assert ours.recv(1) == b"never"


def test_a_reset_in_the_guest_is_one_here(sandbox: Sandbox) -> None:
    script = (
        "import socket, struct\nserver = socket.create_server(('127.0.0.1', 8003)); print('ready', flush=True)\n"
        "there, _ = server.accept(); there.recv(1)\n"
        "there.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0)); there.close()\n"
        "there, _ = server.accept(); there.recv(1)\n"
        "try: there.recv(1); print('end', flush=True)\nexcept ConnectionResetError: print('reset', flush=True)\n"
    )
    with sandbox.commands.start(["python3", "-c", script]) as running:
        said = iter(running.output())
        assert next(said).data == b"ready\n"
        with sandbox.ports.connect(8003) as there:
            there.send(b"x")
            with pytest.raises(PortRefused):
                assert there.receive() is None
        with sandbox.ports.connect(8003) as there:
            there.send(b"x")
            time.sleep(0.5)
        assert next(said).data == b"reset\n"  # leaving before the end is no end


def test_who_does_not_read_holds_the_program_up(sandbox: Sandbox) -> None:
    script = (
        "import socket\nserver = socket.create_server(('127.0.0.1', 8004)); print('ready', flush=True)\n"
        "there, _ = server.accept(); n = 0\n"
        "while True: n += there.send(bytes(65536)); open('n', 'w').write(str(n))\n"
    )
    with serving(sandbox, script), sandbox.ports.connect(8004):
        written, until = "", fair_clock() + 60
        while (now := sandbox.commands.run("cat n").stdout) != written or not now:
            assert fair_clock() < until, "it never stopped"
            written = now
            time.sleep(1)
        assert int(written) < 32 << 20


def test_the_async_side_does_the_same(sandbox: Sandbox) -> None:
    import anyio

    async def main() -> bytes:
        async with AsyncClient() as client:
            box = await AsyncSandbox.connect(sandbox.id, client=client)
            async with box.ports.connect(8005) as there:
                await there.send(b"async" * 100_000)
                await there.end()
                got = []
                while (piece := await there.receive()) is not None:
                    got.append(piece)
                return b"".join(got)

    with serving(sandbox, ECHO, "127.0.0.1", "8005"):
        assert anyio.run(main)[64:] == b"async" * 100_000
