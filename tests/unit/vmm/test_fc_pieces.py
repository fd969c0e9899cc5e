"""The folder that a VMM and the daemon share, what a VMM says on a pipe, and memory made sparse."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from casemate import errors
from casemate.vmm.firecracker.exchange import MAX_STATE_BYTES, Exchange, open_exchange, sweep_exchanges
from casemate.vmm.firecracker.sparse import BLOCK_BYTES, dig_holes
from casemate.vmm.firecracker.stream import connect
from casemate.vmm.firecracker.tail import Tail

NOBODY = 65_534


def in_exchange(tmp_path: Path, body: Callable[[Exchange], Awaitable[None]]) -> None:
    async def run() -> None:
        async with open_exchange(tmp_path / "vmm" / "guest") as exchange:
            await body(exchange)

    anyio.run(run)
    assert list((tmp_path / "vmm").iterdir()) == []


def test_what_a_killed_daemon_left_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "vmm" / "guest" / "old").mkdir(parents=True)

    async def body(exchange: Exchange) -> None:
        assert sorted(os.listdir(exchange.folder)) == ["log", "metrics"]
        assert exchange.path.stat().st_mode & 0o777 == 0o777

    in_exchange(tmp_path, body)


def test_only_ours_may_look_into_the_folder_above(tmp_path: Path) -> None:
    async def body(exchange: Exchange) -> None:
        assert exchange.path.parent.stat().st_mode & 0o777 == 0o700

    in_exchange(tmp_path, body)


def test_a_state_is_taken_and_is_gone_then(tmp_path: Path) -> None:
    async def body(exchange: Exchange) -> None:
        exchange.shut()
        for number in range(2):
            (exchange.path / "state").write_bytes(b"state %d" % number)
            exchange.take("state", tmp_path / f"taken {number}")
            assert (tmp_path / f"taken {number}").read_bytes() == b"state %d" % number
            assert (exchange.path / "state").read_bytes() == b""

    in_exchange(tmp_path, body)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
@pytest.mark.parametrize(
    ("act", "before", "after"),
    [
        ("mkdir new", 0, 1),
        ("ln -s /etc/passwd new", 0, 1),
        ("touch new", 0, 1),
        ("rm log", 0, 1),
        ("mv log stream.sock", 0, 1),
        ("echo said > state", 0, 0),
        ("echo said > memory", 0, 0),
    ],
)
def test_when_its_guest_runs_a_vmm_makes_nothing_more_there(tmp_path: Path, act: str, before: int, after: int) -> None:
    def tried(exchange: Exchange) -> bool:
        words = ["sh", "-c", act]
        done = subprocess.run(words, cwd=exchange.path, user=NOBODY, group=NOBODY, extra_groups=[], capture_output=True)
        return done.returncode != 0

    async def body(exchange: Exchange) -> None:
        assert await anyio.to_thread.run_sync(tried, exchange) == bool(before)

    async def shut(exchange: Exchange) -> None:
        exchange.shut()
        assert await anyio.to_thread.run_sync(tried, exchange) == bool(after)

    in_exchange(tmp_path, body)
    in_exchange(tmp_path, shut)


def _link(place: Path, secret: Path) -> None:
    place.symlink_to(secret)


def _pipe(place: Path, _: Path) -> None:
    os.mkfifo(place)


def _folder(place: Path, _: Path) -> None:
    place.mkdir()


def _large(place: Path, _: Path) -> None:
    place.touch()
    os.truncate(place, MAX_STATE_BYTES + 1)


def _empty(place: Path, _: Path) -> None:
    place.touch()


@pytest.mark.parametrize("plant", [_link, _pipe, _folder, _large, _empty])
def test_a_taken_over_vmm_is_not_believed(tmp_path: Path, plant: Callable[[Path, Path], None]) -> None:
    """Without O_NOFOLLOW the first one hands out a file of ours; without O_NONBLOCK the second one hangs for ever."""
    secret = tmp_path / "secret"
    secret.write_text("ours")

    async def body(exchange: Exchange) -> None:
        plant(exchange.path / "state", secret)
        with pytest.raises(errors.VmmRefused), anyio.fail_after(5):
            await anyio.to_thread.run_sync(exchange.take, "state", tmp_path / "taken", abandon_on_cancel=True)
        assert not (tmp_path / "taken").exists()

    in_exchange(tmp_path, body)


def _another_machines(place: Path, other: Path) -> None:
    place.symlink_to(other)


@pytest.mark.parametrize("plant", [_another_machines, _pipe, _folder])
def test_a_stream_is_the_machines_own_socket(tmp_path: Path, plant: Callable[[Path, Path], None]) -> None:
    """By a link, a VMM that was taken over would have the daemon speak with another machine's agent in its name."""
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(tmp_path / "other.sock"))
        other.listen()
        other.setblocking(False)

        async def body(exchange: Exchange) -> None:
            plant(exchange.path / "stream.sock", tmp_path / "other.sock")
            with pytest.raises(errors.VmmRefused, match="no socket"):
                await connect(exchange.folder, "stream.sock", 1024, 0.5)

        in_exchange(tmp_path, body)
        with pytest.raises(BlockingIOError):
            other.accept()


def test_folders_in_folders_are_removed_however_deep(tmp_path: Path) -> None:
    """A VMM makes them by the thousand; whoever descends into each has no stack for it."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "ours").touch()

    async def body(exchange: Exchange) -> None:
        folder = os.dup(exchange.folder)
        for _ in range(1500):
            os.mkdir("d", dir_fd=folder)
            os.symlink(outside, "link", dir_fd=folder)
            below = os.open("d", os.O_RDONLY | os.O_DIRECTORY, dir_fd=folder)
            os.close(folder)
            folder = below
        os.close(folder)

    try:
        in_exchange(tmp_path, body)
    finally:
        subprocess.run(["rm", "-rf", tmp_path / "vmm"], check=True)  # else pytest cannot clean up after a failure
    assert [path.name for path in outside.iterdir()] == ["ours"]


def test_what_a_killed_daemons_vmms_left_is_swept(tmp_path: Path) -> None:
    place = tmp_path / "vmm" / "guest" / "private"
    place.mkdir(parents=True)
    (place / "file").touch()
    place.chmod(0)
    if os.geteuid() == 0:
        os.chown(place, 2_140_000_777, 2_140_000_777)
    else:
        place.chmod(0o700)
    sweep_exchanges(tmp_path)
    assert list(tmp_path.iterdir()) == []
    sweep_exchanges(tmp_path)


def test_a_sweep_follows_no_link(tmp_path: Path) -> None:
    (tmp_path / "others").mkdir()
    (tmp_path / "others" / "file").touch()
    (tmp_path / "vmm").symlink_to("others")
    sweep_exchanges(tmp_path)
    assert (tmp_path / "others" / "file").exists()


def test_what_is_not_there_is_told(tmp_path: Path) -> None:
    async def body(exchange: Exchange) -> None:
        with pytest.raises(errors.VmmRefused, match="no file 'state'"):
            exchange.drop("state")
        with pytest.raises(errors.VmmRefused, match="no file 'state'"):
            exchange.take("state", tmp_path / "taken")

    in_exchange(tmp_path, body)


def test_a_flood_costs_bounded_memory_and_its_writer_nothing() -> None:
    async def run() -> None:
        ours, theirs = os.pipe2(os.O_NONBLOCK)
        tail = Tail(ours, kept_bytes=1000)
        tail.follow()
        written = refused = 0
        for _ in range(200):
            try:
                written += os.write(theirs, b"x" * 10_000)
            except BlockingIOError:
                refused += 1
            await anyio.lowlevel.checkpoint()
        assert refused > 0
        while tail.written < written:
            await anyio.sleep(0.01)
        assert tail.read() == b"x" * 1000
        os.close(theirs)
        await anyio.sleep(0.1)  # its end: nobody may spin on it
        tail.close()

    anyio.run(run)


def test_a_tail_is_the_end_of_what_was_said() -> None:
    async def run() -> None:
        ours, theirs = os.pipe2(os.O_NONBLOCK)
        tail = Tail(ours)
        os.write(theirs, b"first ")
        assert tail.read() == b"first "
        os.write(theirs, b"second")
        assert tail.read() == b"first second"
        assert tail.written == 12
        os.close(theirs)
        tail.close()

    anyio.run(run)


def test_holes_are_where_only_zeros_were(tmp_path: Path) -> None:
    path = tmp_path / "memory"
    content = bytearray(8 * BLOCK_BYTES + 100)
    content[3 * BLOCK_BYTES + 7] = 1
    content[-1] = 2
    path.write_bytes(content)
    before = path.stat().st_blocks
    if not dig_holes(path):
        pytest.skip("this file system has no holes")
    assert path.read_bytes() == content
    assert path.stat().st_blocks < before
    assert dig_holes(path) == 7 * BLOCK_BYTES
