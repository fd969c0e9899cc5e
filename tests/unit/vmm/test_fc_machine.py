"""A machine whose VMM says what no honest one says."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

import anyio
import pytest
from tests.unit.vmm.test_firecracker_api import DONE, Peer, answer, opened

from casemate.errors import HostError, VmmRefused
from casemate.host import Launcher, Spawned
from casemate.vmm.firecracker.exchange import open_exchange
from casemate.vmm.firecracker.machine import FirecrackerMachine
from casemate.vmm.firecracker.tail import Tail
from casemate.vmm.process import VmmProcess


@asynccontextmanager
async def taken_over(
    folder: Path, launcher: Launcher | None = None
) -> AsyncIterator[tuple[FirecrackerMachine, Peer, int]]:
    """A clone, its API's other end, and that of its metrics."""
    ours, theirs = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    async with open_exchange(folder / "vmm" / "guest") as exchange, opened() as (api, peer):
        process = VmmProcess(cast(Launcher, launcher), Spawned("key", pid=1))  # most calls do not need one
        tail = Tail(ours)
        try:
            yield FirecrackerMachine(process, api, exchange, tail, tail, lambda _: None, None, 0.0), peer, theirs
        finally:
            tail.close()
            os.close(theirs)


def ask(
    folder: Path, body: Callable[[FirecrackerMachine], Awaitable[object]], said: bytes, metrics: bytes = b""
) -> str:
    """What is told when *body*'s one call is answered by *said*."""

    async def run() -> str:
        async with taken_over(folder) as (machine, peer, theirs), anyio.create_task_group() as tasks:

            async def reply() -> None:
                await peer.request()
                os.write(theirs, metrics)
                await peer.answer(said)

            tasks.start_soon(reply)
            with pytest.raises(VmmRefused) as caught:
                await body(machine)
            return str(caught.value)

    return anyio.run(run)


@pytest.mark.parametrize("said", [b"[]", b'"Paused"', b"3", b"null", b"{}", b'{"state": []}'])
def test_a_state_that_is_none(tmp_path: Path, said: bytes) -> None:
    async def body(machine: FirecrackerMachine) -> None:
        await machine.save_difference(tmp_path / "memory", tmp_path / "difference")

    assert "does not say what its guest does" in ask(tmp_path, body, answer(200, said))


def test_metrics_that_are_none(tmp_path: Path) -> None:
    told = ask(tmp_path, FirecrackerMachine.metrics, DONE, b"[" * 30_000 + b"\n")
    assert "did not tell its metrics" in told


@pytest.mark.parametrize("name", ["state", "memory"])
def test_a_folder_where_a_file_should_be(tmp_path: Path, name: str) -> None:
    """The VMM's doing, and not this host's."""

    async def body(machine: FirecrackerMachine) -> None:
        place = tmp_path / "vmm" / "guest"
        for made in ("state", "memory"):
            (place / made).write_bytes(b"made when it was shut")
        (place / name).unlink()
        (place / name).mkdir()
        await machine.save_state(tmp_path / "taken")

    told = ask(tmp_path, body, DONE)
    assert f"what the VMM left as {name!r} is no file" in told or f"left no file {name!r}: Is a directory" in told


class Refusing:
    """A launcher that has ended."""

    def freeze(self, _: Spawned) -> None:
        raise HostError("the launcher does not answer")


def test_what_could_not_be_frozen_is_not_frozen(tmp_path: Path) -> None:
    """Else every later call is refused, of a machine that runs."""

    launcher = cast(Launcher, Refusing())

    async def run() -> None:
        async with taken_over(tmp_path, launcher) as (machine, peer, _), anyio.create_task_group() as tasks:
            with pytest.raises(HostError):
                await machine.freeze()

            async def reply() -> None:
                await peer.request()
                await peer.answer(DONE)

            tasks.start_soon(reply)
            await machine.pause()

    anyio.run(run)
