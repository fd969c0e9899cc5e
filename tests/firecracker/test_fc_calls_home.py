"""A guest that calls the host, which none of ours does: whether it works after a restore (firecracker #5958)."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from tests.firecracker.bare import Bare, address_below, run_bare
from tests.firecracker.guests import Word, wait_for

from casemate.vmm.firecracker.builds import Build

pytestmark = pytest.mark.usefixtures("no_trace")
HOST_PORT = 52


def call_home(bare: Bare) -> None:
    """The guest calls, and hears what it is told."""
    with socket.socket(socket.AF_UNIX) as listener, address_below(bare.folder, f"v.sock_{HOST_PORT}") as address:
        listener.settimeout(20)
        listener.bind(address)
        listener.listen()
        bare.memory().obey(Word.CALL, HOST_PORT)
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(20)
            connection.sendall(b"who is it?")
            assert connection.recv(100) == b"who is it?"
    (bare.folder / f"v.sock_{HOST_PORT}").unlink()


def test_before_and_after_a_restore(firecracker: Build, guests: Path, tmp_path: Path) -> None:
    with run_bare(firecracker.firecracker, tmp_path / "parent") as parent:
        parent.boot(guests / "vsock", vsock=True)
        call_home(parent)
        parent.pause()
        parent.save()
        parent.unpause()
        wait_for(lambda: parent.console.endswith(b"reset\n"), "it to know that its connections are gone")
        call_home(parent)
    with run_bare(firecracker.firecracker, tmp_path / "clone") as clone:
        clone.load(parent.folder / "state", parent.folder / "memory", resume_vm=True)
        wait_for(lambda: clone.console == b"reset\n", "it to know that it has none")
        call_home(clone)
