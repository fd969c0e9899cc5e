"""HELLO to a copy, in a real guest: its processes are frozen, get new ids and numbers, and are thawed.

One clone is the sandbox that is copied and the copy: it is frozen, loses its stream, and is introduced as another.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from machines import ANSWER_S, Clone, open_clone, open_driver
from vm_world import Daemon

from casemate.errors import NotFound, StateConflict
from casemate.sandbox import Introduction, cells, contexts, execs, new_id
from casemate.sandbox.warmth import warm

pytestmark = [pytest.mark.vm, pytest.mark.slow]

BEGUN = """
import os, random, numpy, threading
expected = random.Random(1).random(), numpy.random.RandomState(1).rand()
random._inst.seed(1); numpy.random.mtrand._rand.seed(1)
kept = 'kept'
forked = not os.fork()
if not forked: print('begun', flush=True)
def draw():
    while not os.path.exists('/tmp/go'): pass
    print([drawn == would for drawn, would in zip((random.random(), numpy.random.rand()), expected)], flush=True)
thread = threading.Thread(target=draw)
thread.start(); thread.join()
if forked: os._exit(0)
os.wait()[1]
"""


async def control(clone: Clone, op: str) -> float:
    """How long that took, in ms."""
    began = time.monotonic()
    async with clone.link.open("control", {"op": op}, timeout_s=ANSWER_S) as channel:
        channel.finish()
    return (time.monotonic() - began) * 1000


async def begin_copy(clone: Clone, **what: Any) -> Introduction:
    """The frozen guest is another's from here on, as if its memory had been copied."""
    introduction = Introduction(new_id(), copy=True, **what)
    await clone.lose_stream(introduction)
    return introduction


@asynccontextmanager
async def started(clone: Clone, *argv: str, **more: Any) -> AsyncIterator[execs.Exec]:
    """A program, once it has said something; its output so far is read."""
    async with execs.start(clone.link, execs.ExecSpec(argv, on_disconnect="keep", **more)) as running:
        assert isinstance(await running.read(), execs.Output)
        yield running


async def rest_of(clone: Clone, exec_id: str, *said: bytes) -> tuple[bytes, execs.End]:
    """All of an exec's stdout, and its end."""
    output = b""
    async with execs.attach(clone.link, exec_id) as running:
        for data in said:
            await running.feed(data)
        while isinstance(piece := await running.read(), execs.Output):
            output += piece.data
    return output, piece.end


async def ids(clone: Clone) -> dict[str, str]:
    """Execs that run: what they are and their ids."""
    return {found["argv"][-1]: found["exec_id"] for found in await execs.listed(clone.link) if found["running"]}


def test_a_copy_goes_on_as_another(daemon: Daemon, tmp_path: Path, no_trace: None) -> None:
    """Exec, terminal, cell, context and environment; the proof; the ids of before are nobody's."""

    async def run() -> None:
        async with open_driver(daemon.home) as driver, open_clone(driver, daemon.home, tmp_path) as clone:
            pty = execs.Pty(execs.Window(24, 80), "dumb")
            async with (
                started(clone, "sh", "-c", "echo one; read word; echo $word", stdin=True) as plain,
                started(clone, "sh", "-c", "echo two; read word; echo got $word", pty=pty, stdin=True) as terminal,
                cells.run(clone.link, BEGUN, cells.RunCell(detach=True)) as cell,
            ):
                while not isinstance(item := await cell.read(), execs.Output):
                    pass
                assert item.data == b"begun\n"
                born = (await clone.run("cat", "/proc/sys/kernel/random/boot_id"))[0]
                quiesced_ms = await control(clone, "quiesce")
                old = {plain.exec_id, terminal.exec_id, cell.cell_id}
                copied = await begin_copy(clone, env={"WORD": "new"})
            now = await ids(clone)
            assert len(now) == 2
            (running,) = [found for found in await cells.listed(clone.link) if found.state == "running"]
            assert not old & {*now.values(), running.cell_id}
            for known in (plain.exec_id, terminal.exec_id):
                with pytest.raises(NotFound):
                    async with execs.attach(clone.link, known):
                        pass
            thawed_ms = await control(clone, "thaw")
            print(f"quiesce {quiesced_ms:.1f} ms, thaw {thawed_ms:.1f} ms")
            said = await clone.run(
                "sh", "-c", "touch /tmp/go; cat /etc/machine-id /proc/sys/kernel/random/boot_id; hostname; echo $WORD"
            )
            machine_id, boot_id, hostname, word, _ = said[0].decode().split("\n")
            assert (machine_id, hostname, word) == (copied.machine_id, copied.hostname, "new")
            assert boot_id != born.decode().strip()
            output = b""
            async with cells.join(clone.link, running.cell_id) as joined:
                while not isinstance(item := await joined.read(), cells.CellEnded):
                    output += item.data if isinstance(item, execs.Output) else b""
            assert output == b"begun\n" + 2 * b"[False, False]\n"
            await warm(clone.link, copied.guest_id, copy=True)  # as a member of a pool
            assert (await clone.run_code("kept"))[1].text == "'kept'"
            assert (await clone.run("sh", "-c", "echo $WORD"))[0] == b"new\n"
            assert [found.state for found in await cells.listed(clone.link)] == ["ended", "ended"]
            now = await ids(clone)
            output, end = await rest_of(clone, now["echo one; read word; echo $word"], b"three\n")
            assert (output, end) == (b"one\nthree\n", execs.Exited(0))
            output, end = await rest_of(clone, now["echo two; read word; echo got $word"], b"four\n")
            assert output.replace(b"\r", b"") == b"two\nfour\ngot four\n"
            assert end == execs.Exited(0)

    anyio.run(run)


MANY = 300
BOMB = "import os\nprint('begun', flush=True)\nwhile True:\n try: os.fork()\n except OSError: pass"
SERVER = """
import socket
server = socket.create_server(('127.0.0.1', 4000))
print('begun', flush=True)
talk, _ = server.accept()
try: print(talk.recv(10))
except ConnectionResetError: print('reset')
"""


def test_whatever_runs_is_frozen_and_holds_up_nobody(daemon: Daemon, tmp_path: Path, no_trace: None) -> None:
    """Stopped, unread, overdue or multiplying: HELLO waits for none of them, and what is killed dies frozen."""

    async def run() -> None:
        async with open_driver(daemon.home) as driver, open_clone(driver, daemon.home, tmp_path) as clone:
            async with (
                started(clone, "sh", "-c", "echo stopped; kill -STOP $$; echo went on"),
                started(clone, "sh", "-c", "echo late; sleep 60; true", timeout_s=15.0),
                started(clone, "sh", "-c", "echo killed; sleep 60; true"),
                started(clone, "yes"),  # nobody reads on: it waits for room in its pipe
                started(clone, "python3", "-c", SERVER),
                clone.link.open("tcp-in", {"port": 4000}),
                started(clone, "python3", "-c", BOMB, user="root"),
            ):
                while await processes(clone) < MANY:
                    pass
                quiesced_ms = await control(clone, "quiesce")
                began = time.monotonic()
                await begin_copy(clone)
                hello_ms = (time.monotonic() - began) * 1000
            now = await ids(clone)
            assert len(now) == 6
            await execs.send_signal(clone.link, now["echo killed; sleep 60; true"], "KILL")
            output, end = await rest_of(clone, now["echo killed; sleep 60; true"])
            assert (output, end) == (b"killed\n", execs.Signaled(9))
            output, end = await rest_of(clone, now["echo late; sleep 60; true"])
            assert (output, end) == (b"late\n", execs.TimedOut(15.0))
            await contexts.remove(clone.link, "default")
            print(f"quiesce {quiesced_ms:.1f} ms, HELLO {hello_ms:.1f} ms, {await processes(clone)} processes")
            await execs.send_signal(clone.link, now[BOMB], "STOP")
            thawed_ms = await control(clone, "thaw")
            print(f"thaw {thawed_ms:.1f} ms")
            assert await rest_of(clone, now[SERVER]) == (b"begun\nreset\n", execs.Exited(0))
            stopped = now["echo stopped; kill -STOP $$; echo went on"]
            await execs.send_signal(clone.link, stopped, "CONT")
            assert await rest_of(clone, stopped) == (b"stopped\nwent on\n", execs.Exited(0))

    anyio.run(run)


async def processes(clone: Clone) -> int:
    async with clone.link.open("control", {"op": "stats"}, timeout_s=ANSWER_S) as channel:
        channel.finish()
        return int(channel.accepted["user"]["processes"])


# The sandbox's disk once more, where it can be made to stand still. Source: linux/fs.h for the two numbers.
HOLD = """
import ctypes, os
os.mkdir('/tmp/disk')
assert ctypes.CDLL(None).mount(b'/dev/vdc', b'/tmp/disk', b'ext4', 0, None) == 0
print('begun', flush=True)
input()
os.mkdir('/tmp/disk/new')
print('over')
"""
FREEZE = "import fcntl, os; fcntl.ioctl(os.open('/tmp/disk', os.O_RDONLY), {number}, 0)"
FIFREEZE, FITHAW = 0xC0045877, 0xC0045878


def test_what_the_kernel_holds_is_said_and_the_others_go_on(daemon: Daemon, tmp_path: Path, no_trace: None) -> None:
    """Who writes to a file system that stands still can't be frozen: then nothing is."""

    async def run() -> None:
        async with open_driver(daemon.home) as driver, open_clone(driver, daemon.home, tmp_path) as clone:

            async def freeze_disk(number: int) -> None:
                argv = ("python3", "-I", "-B", "-c", FREEZE.format(number=number))
                assert (await clone.run(*argv, user="root"))[1].end == execs.Exited(0)

            async with started(clone, "python3", "-I", "-B", "-c", HOLD, stdin=True, user="root") as held:
                await freeze_disk(FIFREEZE)
                await held.feed(b"\n")
                (pid,) = [str(found["pid"]) for found in await execs.listed(clone.link) if found["running"]]
                while b") D " not in (await clone.run("cat", f"/proc/{pid}/stat"))[0]:
                    pass
                with pytest.raises(StateConflict, match=f"{pid} python3"):
                    await control(clone, "quiesce")
                assert (await clone.run("echo", "others"))[0] == b"others\n"
                await freeze_disk(FITHAW)
                assert await rest_of(clone, held.exec_id) == (b"begun\nover\n", execs.Exited(0))
            await control(clone, "quiesce")
            await control(clone, "thaw")

    anyio.run(run)
