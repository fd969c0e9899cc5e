"""The driver's stream, on what the real Firecracker was heard to say."""

from __future__ import annotations

import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio
import pytest
from tests.firecracker.counterpart import load, run_counterpart
from tests.firecracker.transcripts import ANSWER_S, PORT, SILENT_S, Event

from casemate import errors
from casemate.vmm.firecracker.stream import NobodyThere, connect

pytestmark = pytest.mark.usefixtures("no_trace")
Connect = Callable[..., Awaitable[socket.socket]]
FIRST_NUMBER = 1 << 30


def only(number: int, events: list[Event]) -> list[Event]:
    """What concerns one connection."""
    return [event for event in events if event.get("on") == number]


def play(events: list[Event], folder: Path, host: Callable[[Connect], Awaitable[None]]) -> None:
    """*host* connects to a counterpart of *events*."""

    async def run() -> None:
        descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY)
        try:

            async def connected(port: int = PORT, timeout_s: float = ANSWER_S) -> socket.socket:
                return await connect(descriptor, "v.sock", port, timeout_s)

            await host(connected)
        finally:
            os.close(descriptor)

    with run_counterpart(events, folder):
        anyio.run(run)


def heard(connection: socket.socket, length: int) -> bytes:
    connection.settimeout(ANSWER_S)
    return connection.recv(length, socket.MSG_WAITALL)


def test_it_carries_bytes_both_ways(tmp_path: Path) -> None:
    async def host(connected: Connect) -> None:
        with await connected() as one:
            assert not one.getblocking()
            one.send(b"hello")
            assert heard(one, 5) == b"hello"
        (await connected()).close()

    play(load("heard_and_answered"), tmp_path, host)


def test_what_comes_right_behind_the_answer_is_the_guests(tmp_path: Path) -> None:
    async def host(connected: Connect) -> None:
        with await connected(port=2048) as one:
            assert heard(one, 8) == b"welcome\n"

    play(load("the_guest_speaks_first"), tmp_path, host)


def test_nobody_listens(tmp_path: Path) -> None:
    async def host(connected: Connect) -> None:
        with pytest.raises(NobodyThere):
            await connected(port=1025)
        (await connected()).close()

    play(load("nobody_listens"), tmp_path, host)


def test_no_socket(tmp_path: Path) -> None:
    async def run() -> None:
        descriptor = os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)
        try:
            with pytest.raises(NobodyThere):
                await connect(descriptor, "v.sock", PORT, ANSWER_S)
        finally:
            os.close(descriptor)

    anyio.run(run)


def test_a_guest_that_sleeps_is_not_waited_for_in_vain(tmp_path: Path) -> None:
    async def host(connected: Connect) -> None:
        with pytest.raises(errors.VmmRefused, match="not answered"):
            await connected(timeout_s=SILENT_S / 2)

    play(load("no_guest_ever_listens"), tmp_path, host)


def test_whoever_waits_long_enough_is_answered(tmp_path: Path) -> None:
    async def host(connected: Connect) -> None:
        (await connected()).close()

    play(only(1, load("the_guest_sleeps")), tmp_path, host)


def test_the_next_attempt_after_one_that_was_given_up(tmp_path: Path) -> None:
    async def host(connected: Connect) -> None:
        with pytest.raises(errors.VmmRefused, match="not answered"):
            await connected(timeout_s=SILENT_S / 2)
        with await connected() as second:
            second.send(b"hello")
            assert heard(second, 5) == b"hello"

    play(load("given_up_while_the_guest_sleeps"), tmp_path, host)


def test_cancelled_it_leaves_nothing_open(tmp_path: Path) -> None:
    async def host(connected: Connect) -> None:
        with anyio.move_on_after(SILENT_S / 2) as scope:
            await connected()
        assert scope.cancelled_caught

    play(load("no_guest_ever_listens"), tmp_path, host)


@pytest.mark.parametrize("name", ["closed_by_the_guest", "dropped_by_the_guest"])
def test_the_end_of_the_stream_is_the_end_of_file(name: str, tmp_path: Path) -> None:
    async def host(connected: Connect) -> None:
        with await connected() as one:
            assert heard(one, 1) == b""

    play(load(name), tmp_path, host)


def test_after_a_save_the_old_one_is_dead_and_a_new_one_is_not(tmp_path: Path) -> None:
    """Nothing tells that it is dead until something is said on it: who saves must make it anew without being told."""

    async def host(connected: Connect) -> None:
        with await connected() as busy:
            busy.send(b"hello")
            assert heard(busy, 1) == b""
            with await connected() as fresh:
                fresh.send(b"hello")
                assert heard(fresh, 5) == b"hello"

    events = [event for event in load("saved_and_unpaused") if event.get("on") in (2, 3)]
    play(events, tmp_path, host)


def test_a_clone_is_connected_to_when_it_runs(tmp_path: Path) -> None:
    async def host(connected: Connect) -> None:
        with await connected() as one:
            one.send(b"hello")
            assert heard(one, 5) == b"hello"

    play(only(2, load("restored")), tmp_path, host)
