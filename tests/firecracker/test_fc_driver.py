"""The driver with the real Firecracker, jailed, and guests of a few hundred bytes: what the contract promises."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import anyio
import pytest
from tests.firecracker.driving import MEMORY_MIB, Ground, Opened, drive, memory_of
from tests.firecracker.guests import PAGE, PLENTY, Word, board_in_file

from casemate import errors
from casemate.vmm import SnapshotFiles
from casemate.vmm.firecracker.builds import Build
from casemate.vmm.firecracker.machine import FirecrackerMachine

pytestmark = pytest.mark.usefixtures("no_trace")
Drive = Callable[[Callable[[Ground], Awaitable[None]]], None]
ENDS_S = 20.0
CONSOLE_BYTES = 65_536


@pytest.fixture
def driven(firecracker: Build, guests: Path, tmp_path: Path) -> Drive:
    return partial(drive, firecracker, guests, tmp_path)


async def say_and_hear(stream: socket.socket) -> None:
    stream.send(b"hello")
    with anyio.fail_after(ENDS_S):
        assert await asyncio.get_running_loop().sock_recv(stream, 100) == b"hello"


def test_a_boot_and_a_pause(driven: Drive) -> None:
    async def body(ground: Ground) -> None:
        async with ground.boot("counter") as machine:
            memory = await memory_of(machine)
            assert memory.runs()
            await machine.pause()
            assert memory.stands_still()
            await machine.unpause()
            assert memory.runs()
            memory.obey(Word.SAY, 0xFEED)
            with anyio.fail_after(ENDS_S):
                while await machine.console() != b"counting\n0000feed\n":
                    await anyio.sleep(0.01)
            assert machine.console_written == 18
        assert not Path(f"/proc/{machine.pid}").exists()

    driven(body)


def test_two_restores_go_ways_of_their_own(driven: Drive) -> None:
    async def body(ground: Ground) -> None:
        files = await ground.save()
        saved = board_in_file(files.memory)
        assert files.memory.stat().st_size == MEMORY_MIB << 20
        assert files.memory.stat().st_blocks * 512 < 4 << 20
        async with ground.restore(files) as one, ground.restore(files) as two:
            first, second = await memory_of(one), await memory_of(two)
            assert first.board() == second.board() == saved
            assert first.stands_still()
            await one.unpause()
            await two.unpause()
            first.obey(Word.TOUCH, 100)
            assert second.runs()
            assert (first.board().obeyed, second.board().obeyed) == (1, 0)
            assert second.read(PLENTY, 4) == bytes(4)
            account = await one.account(files.memory)
            assert account.capabilities == 0
        assert board_in_file(files.memory) == saved

    driven(body)


def test_what_was_written_is_a_difference_and_comes_back_with_it(driven: Drive) -> None:
    async def body(ground: Ground) -> None:
        files = await ground.save()
        state, difference = ground.folder / "state2", ground.folder / "difference"
        async with ground.restore(files) as machine:
            await machine.unpause()
            memory = await memory_of(machine)
            memory.obey(Word.TOUCH, 64)
            with pytest.raises(errors.StateConflict):
                await machine.save_difference(files.memory, ground.folder / "too-early")
            await machine.pause()
            then = memory.board()
            await machine.save_state(state)
            saved = await machine.save_difference(files.memory, difference)
            assert 64 * PAGE <= saved.bytes < 128 * PAGE
        async with ground.restore(SnapshotFiles(files.memory, state), difference=difference) as machine:
            memory = await memory_of(machine)
            assert memory.board() == then
            assert struct.unpack("<I", memory.read(PLENTY + 63 * PAGE, 4)) == (64,)
            await machine.unpause()
            assert memory.runs()
            memory.obey(Word.TOUCH, 1)
            assert memory.board().obeyed == 2

    driven(body)


def test_two_saves_in_a_row_are_the_same(driven: Drive) -> None:
    """Firecracker's own differences are each against the one before; ours are all against the base."""

    async def body(ground: Ground) -> None:
        files = await ground.save()
        async with ground.restore(files) as machine:
            await machine.unpause()
            (await memory_of(machine)).obey(Word.TOUCH, 64)
            await machine.pause()
            for name in ("first", "second"):
                await machine.save_state(ground.folder / f"{name}-state")
                await machine.save_difference(files.memory, ground.folder / name)
            first, second = ((ground.folder / name).read_bytes() for name in ("first", "second"))
            assert first == second
            whole = ground.folder / "whole"
            whole.write_bytes(files.memory.read_bytes())
            assert 64 * PAGE <= await machine.save_memory(files.memory, whole) <= len(first)
            assert board_in_file(whole).obeyed == 1

    driven(body)


def test_frozen_and_thawed(driven: Drive) -> None:
    async def body(ground: Ground) -> None:
        files = await ground.save()
        async with ground.restore(files) as machine:
            await machine.unpause()
            memory = await memory_of(machine)
            await machine.freeze()
            assert memory.stands_still()
            with pytest.raises(errors.StateConflict):
                await machine.pause()
            await machine.thaw()
            assert memory.runs()
            await machine.freeze()  # and closed like that

    driven(body)


def test_a_stream(driven: Drive) -> None:
    async def body(ground: Ground) -> None:
        files = await ground.save("vsock")
        async with ground.restore(files) as machine:
            await machine.unpause()
            await say_and_hear(machine.stream)
            await say_and_hear(await machine.reopen_stream())
            await machine.pause()
            await machine.unpause()
            await say_and_hear(machine.stream)  # not so with firecracker #6100

    driven(body)


def test_a_save_ends_the_stream_and_another_is_had(driven: Drive) -> None:
    async def body(ground: Ground) -> None:
        async with ground.boot("vsock") as machine:
            await say_and_hear(machine.stream)
            assert not machine.stream_survives
            await machine.pause()
            await machine.save_state(ground.folder / "state")
            await machine.unpause()
            machine.stream.send(b"hello")
            with anyio.fail_after(ENDS_S):
                assert await asyncio.get_running_loop().sock_recv(machine.stream, 100) == b""
            await say_and_hear(await machine.reopen_stream())

    driven(body)


def test_a_stream_from_before_the_guest_is_awake(driven: Drive) -> None:
    async def body(ground: Ground) -> None:
        async with ground.boot("late") as machine:
            machine.stream.send(b"are you up?")
            (await memory_of(machine)).obey(Word.LISTEN)
            with anyio.fail_after(ENDS_S):
                assert await asyncio.get_running_loop().sock_recv(machine.stream, 100) == b"are you up?"

    driven(body)


async def report_of(machine: Opened) -> errors.VmmExited:
    """Of a machine whose user learns at his next call that it has ended."""

    async def use() -> None:
        async with machine as opened:
            await opened.wait_exit()
            await opened.pause()

    with pytest.raises(errors.VmmExited) as caught:
        await use()
    return caught.value


@pytest.mark.parametrize(
    ("word", "said"),
    [
        (Word.RESET, "it said: counting"),  # to its console: nothing else is known
        (Word.FAULT, "Received KVM_EXIT_SHUTDOWN signal"),
        (Word.NOWHERE, "Received KVM_EXIT_INTERNAL_ERROR signal"),
    ],
    ids=["reset", "fault", "nowhere"],
)
def test_a_guest_that_ends(word: Word, said: str, driven: Drive) -> None:
    @asynccontextmanager
    async def told(ground: Ground) -> AsyncIterator[FirecrackerMachine]:
        async with ground.boot("counter") as machine:
            (await memory_of(machine)).tell(word)
            yield machine

    async def body(ground: Ground) -> None:
        with anyio.fail_after(ENDS_S):
            report = await report_of(told(ground))
        assert said in report.hint
        assert report.evidence["console"].startswith("counting\n")  # the VMM's own last word may come after it
        assert "status=" in report.evidence["exit"]

    driven(body)


def test_last_words_are_in_the_report(driven: Drive) -> None:
    async def body(ground: Ground) -> None:
        with anyio.fail_after(ENDS_S):
            report = await report_of(ground.boot("fatal"))
        assert report.evidence["console"] == "these are my last words\n"
        assert "KVM_EXIT_SHUTDOWN" in report.evidence["log"]

    driven(body)


def test_killed(driven: Drive) -> None:
    async def body(ground: Ground) -> None:
        async with ground.boot("counter") as machine:
            await memory_of(machine)
            os.kill(machine.pid, 9)
            with anyio.fail_after(ENDS_S):
                assert (await machine.wait_exit()).signal == 9
            with pytest.raises(errors.VmmExited):
                await machine.unpause()

    driven(body)


def test_a_flood_is_bounded(driven: Drive) -> None:
    async def body(ground: Ground) -> None:
        async with ground.boot("flooder") as machine:
            with anyio.fail_after(60):
                while machine.console_written < 2 * CONSOLE_BYTES:
                    await machine.console()
                    await anyio.sleep(0.05)
            assert len(await machine.console()) <= CONSOLE_BYTES
            await machine.pause()

    driven(body)


def test_metrics(driven: Drive) -> None:
    async def body(ground: Ground) -> None:
        files = await ground.save("vsock")
        async with ground.restore(files) as machine:
            await machine.unpause()
            await say_and_hear(machine.stream)
            counted = await machine.metrics()
            assert counted["vsock"]["rx_bytes_count"] == 5
            assert counted["vsock"]["conns_added"] == 1
            assert (await machine.metrics())["vsock"]["conns_added"] == 0

    driven(body)
