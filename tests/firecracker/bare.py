"""Firecracker as a script would run it: no jail, no driver, calls of its API one after the other."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.firecracker.guests import GuestMemory, wait_for

ANSWER_S = 60.0


@contextmanager
def address_below(folder: Path, name: str) -> Iterator[str]:
    """Of the socket *name* in *folder*, whose own path may be longer than an address can be."""
    descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{descriptor}/{name}"
    finally:
        os.close(descriptor)


def connect_below(folder: Path, name: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(ANSWER_S)
    try:
        with address_below(folder, name) as address:
            connection.connect(address)
    except OSError:
        connection.close()
        raise
    return connection


class _Connection(http.client.HTTPConnection):
    def __init__(self, folder: Path) -> None:
        super().__init__("localhost", timeout=ANSWER_S)
        self._folder = folder

    def connect(self) -> None:
        self.sock = connect_below(self._folder, "api.sock")


def answers(folder: Path) -> bool:
    """A moment after its file is there it refuses."""
    try:
        connect_below(folder, "api.sock").close()
    except (FileNotFoundError, ConnectionRefusedError):
        return False
    return True


class Bare:
    """One process, and *folder*, in which it runs and has its sockets and files."""

    def __init__(self, process: subprocess.Popen[bytes], folder: Path) -> None:
        self.process = process
        self.folder = folder

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def console(self) -> bytes:
        return (self.folder / "console").read_bytes()

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> tuple[int, Any]:
        """Status and decoded answer."""
        connection = _Connection(self.folder)
        try:
            connection.request(method, path, None if body is None else json.dumps(body))
            with connection.getresponse() as answer:
                content = answer.read()
                return answer.status, json.loads(content) if content else None
        finally:
            connection.close()

    def do(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """The answer to a call that has to succeed."""
        status, answer = self.call(method, path, body)
        assert status in (200, 204), f"{method} {path}: {status} {answer}"
        return answer

    def boot(self, guest: Path, *, memory_mib: int = 128, vsock: bool = False, **machine: Any) -> None:
        self.do("PUT", "/machine-config", {"vcpu_count": 1, "mem_size_mib": memory_mib, **machine})
        self.do("PUT", "/boot-source", {"kernel_image_path": str(guest)})
        if vsock:
            self.do("PUT", "/vsock", {"guest_cid": 3, "uds_path": "v.sock"})
        self.do("PUT", "/actions", {"action_type": "InstanceStart"})

    def pause(self) -> None:
        self.do("PATCH", "/vm", {"state": "Paused"})

    def unpause(self) -> None:
        self.do("PATCH", "/vm", {"state": "Resumed"})

    def save(self, kind: str = "Full", *, state: Path | str = "state", memory: Path | str = "memory") -> None:
        body = {"snapshot_type": kind, "snapshot_path": str(state), "mem_file_path": str(memory)}
        self.do("PUT", "/snapshot/create", body)

    def load(self, state: Path, memory: Path, **options: Any) -> None:
        backend = {"backend_type": "File", "backend_path": str(memory)}
        self.do("PUT", "/snapshot/load", {"snapshot_path": str(state), "mem_backend": backend, **options})

    def memory(self) -> GuestMemory:
        return GuestMemory(self.pid)

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def connect(self, line: bytes) -> socket.socket:
        """To the vsock's socket, where *line* is said first."""
        connection = connect_below(self.folder, "v.sock")
        connection.sendall(line)
        return connection


@contextmanager
def run_bare(firecracker: Path, folder: Path) -> Iterator[Bare]:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "log").touch()  # it makes none itself
    with (folder / "console").open("wb") as console, (folder / "errors").open("wb") as errors:
        argv = [firecracker, "--api-sock", "api.sock", "--log-path", "log", "--level", "Info"]
        process = subprocess.Popen(argv, cwd=folder, stdin=subprocess.DEVNULL, stdout=console, stderr=errors)
    try:
        wait_for(lambda: answers(folder), "the API's socket")
        yield Bare(process, folder)
    finally:
        process.kill()
        process.wait()
