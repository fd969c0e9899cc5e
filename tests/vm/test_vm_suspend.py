"""Suspend and resume of a real machine, twenty times over: nothing in it is lost, doubled or late."""

from __future__ import annotations

import hashlib
import os
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import pytest
from vm_world import Daemon

from casemate.errors import GuestError, NotFound, StateConflict
from casemate.sdk import AsyncClient, AsyncSandbox, Exited

pytestmark = [pytest.mark.vm, pytest.mark.slow]
ROUNDS = 20
CLOCK_S = 0.1  # most of the time: the hour takes as long to arrive as a busy host lets it
REST_S = 0.3  # at least; by so much a clock that nobody sets is off
STORED = 1.3  # times what has changed
# A number and the hour in each line; ends by itself when a clock that must not go back does
COUNTING = """
import time
count, last = 0, 0
while True:
    now = time.monotonic_ns()
    assert now >= last, f'MONOTONIC went back from {last} to {now}'
    count, last = count + 1, now
    print(count, flush=True)
    time.sleep(0.01)
"""
# It has to be writing at any moment, not much: each round checks all of it
INSERTING = """
import sqlite3, time
db = sqlite3.connect('under-write.db', isolation_level=None)
db.execute('CREATE TABLE t (n INTEGER PRIMARY KEY, filler BLOB)')
while True:
    for _ in range(4): db.execute('INSERT INTO t (filler) VALUES (randomblob(3000))')
    time.sleep(0.05)
"""
CHECKING = """
import sqlite3
db = sqlite3.connect('under-write.db', timeout=30)
print(*db.execute('PRAGMA integrity_check').fetchone(), *db.execute('SELECT count(*), max(n) FROM t').fetchone())
"""
ECHO = """
import socket
with socket.create_server(('127.0.0.1', 7777)) as server:
    print('ready', flush=True)
    there, _ = server.accept()
    while piece := there.recv(65536): there.sendall(piece)
"""


@asynccontextmanager
async def sandbox_of(daemon: Daemon, **wish: Any) -> AsyncIterator[AsyncSandbox]:
    async with AsyncClient(daemon.url) as client, await AsyncSandbox.create(client=client, **wish) as sandbox:
        yield sandbox


async def said(sandbox: AsyncSandbox, *argv: str) -> str:
    done = await sandbox.commands.run(list(argv))
    assert done.end == Exited(0), done.stderr
    return done.stdout


async def wall_clock_error_s(sandbox: AsyncSandbox) -> float:
    """How far the guest's clock is off, at least: it was read some time between the two readings of ours."""
    found = []
    for _ in range(3):
        before = time.time()
        guests = float(await said(sandbox, "date", "+%s.%N"))
        found.append(max(before - guests, guests - time.time(), 0.0))
    return min(found)


def is_alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


async def until(condition: Callable[[], object], what: str, within_s: float = 20) -> None:
    with anyio.move_on_after(within_s):
        while not condition():
            await anyio.sleep(0.01)
        return
    raise AssertionError(f"not within {within_s:g} s: {what}")


class Followed:
    """The counting program's lines, as its one follower got them."""

    def __init__(self) -> None:
        self.text = bytearray()
        self.end: object = None

    async def follow(self, sandbox: AsyncSandbox) -> None:
        async with sandbox.commands.start(["python3", "-c", COUNTING]) as running:
            async for piece in running.output():
                assert piece.stream == "stdout", piece.data
                self.text += piece.data
            self.end = running.end

    @property
    def lines(self) -> list[bytes]:
        return bytes(self.text).split(b"\n")[:-1]

    def check(self) -> None:
        assert self.end is None, self.end
        assert self.lines == [b"%d" % n for n in range(1, len(self.lines) + 1)]


async def drained(pieces: AsyncIterator[Any], into: bytearray) -> None:
    async for piece in pieces:
        into += piece.data if hasattr(piece, "data") else piece


async def reserved_mib(sandbox: AsyncSandbox) -> int:
    return int((await sandbox._client.call("GET", "/v1/health"))["admission"]["memory_reserved_mib"])


@pytest.mark.timeout(300)
def test_twenty_rounds_and_nothing_is_lost(daemon: Daemon, no_trace: None) -> None:
    async def main() -> None:
        async with sandbox_of(daemon) as sandbox, AsyncExitStack() as held, anyio.create_task_group() as tasks:
            counted, shown = Followed(), bytearray()
            inserting = sandbox.commands.start(["python3", "-c", INSERTING])
            tasks.start_soon(counted.follow, sandbox)
            await held.enter_async_context(inserting)
            echoing = await held.enter_async_context(sandbox.commands.start(["python3", "-c", ECHO]))
            assert (await anext(echoing.output())).data == b"ready\n"
            connection = await held.enter_async_context(sandbox.ports.connect(7777))
            terminal = await held.enter_async_context(sandbox.commands.terminal(["sh"]))
            tasks.start_soon(drained, terminal.output(), shown)
            await terminal.feed(b"x=0; echo re''ady\n")
            await until(lambda: b"ready\r\n" in shown and len(counted.lines) > 20, "they all run")
            rows, errors_s = 0, list[float]()
            for n in range(1, ROUNDS + 1):
                await said(
                    sandbox, "sh", "-c", f"echo written {n} > plain{n}; echo synced {n} > synced{n}; sync synced{n}"
                )
                pid, before_mib, lines = sandbox.info.pid, await reserved_mib(sandbox), len(counted.lines)
                assert pid
                facts = await sandbox.suspend()
                assert not is_alive(pid)
                assert sandbox.info.pid is None
                assert await reserved_mib(sandbox) < before_mib - 100
                assert facts.stored_bytes <= STORED * (facts.dirty_bytes + facts.written_bytes), facts
                await anyio.sleep(REST_S)
                was, began = len(counted.lines), time.monotonic()
                await sandbox.resume()
                took_s = time.monotonic() - began
                assert sandbox.info.pid not in (None, pid)
                errors_s.append(await wall_clock_error_s(sandbox))
                assert errors_s[-1] < REST_S, f"round {n}"
                assert await reserved_mib(sandbox) > before_mib - 100
                await connection.send(b"round %d\n" % n)
                await terminal.feed(b"x=$((x+1)); echo at$x.\n")
                assert await connection.receive() == b"round %d\n" % n
                await until(lambda n=n: b"at%d.\r\n" % n in shown, f"round {n}: the terminal answers")
                await until(lambda was=was: len(counted.lines) > was, f"round {n}: the counter goes on")
                counted.check()
                assert lines <= was
                state, count, highest = (await said(sandbox, "python3", "-c", CHECKING)).split()
                assert (state, count) == ("ok", highest)
                assert int(count) > rows, f"round {n}"
                rows = int(count)
                print(f"round {n}: {facts} resumed in {took_s:.2f} s")
            texts = await said(sandbox, "sh", "-c", f"for n in $(seq {ROUNDS}); do cat plain$n synced$n; done")
            wanted = [line for n in range(1, ROUNDS + 1) for line in (f"written {n}", f"synced {n}")]
            assert texts.split("\n")[:-1] == wanted
            assert statistics.median(errors_s) < CLOCK_S, errors_s
            counted.check()
            tasks.cancel_scope.cancel()

    anyio.run(main)


MEGABYTES = 24
NUMBERS = """
import hashlib, sys
seen = hashlib.sha256()
for n in range(int(sys.argv[1]) * 16):
    piece = hashlib.sha256(b'%d' % n).digest() * 2048
    seen.update(piece)
    sys.stdout.buffer.write(piece)
print(seen.hexdigest(), file=sys.stderr)
"""
BOTH_WAYS = """
import hashlib, socket
with socket.create_server(('127.0.0.1', 7778)) as server:
    print('ready', flush=True)
    there, _ = server.accept()
    while piece := there.recv(65536): there.sendall(piece)
"""


@pytest.mark.timeout(240)
def test_what_is_under_way_both_ways_arrives_whole(daemon: Daemon, no_trace: None) -> None:
    """An upload, a download, a flood of output and a busy connection, while it is suspended again and again."""

    async def main() -> None:
        async with sandbox_of(daemon) as sandbox:
            data, results = os.urandom(1 << 20) * MEGABYTES, dict[str, bool]()
            await sandbox.files.write("down", data)

            async def upload() -> None:
                await sandbox.files.write("up", data)
                digest = (await said(sandbox, "sha256sum", "up")).split()[0]
                results["upload"] = digest == hashlib.sha256(data).hexdigest()

            async def download() -> None:
                results["download"] = await sandbox.files.read("down") == data

            async def flood() -> None:
                seen, told = hashlib.sha256(), b""
                async with sandbox.commands.start(["python3", "-c", NUMBERS, str(MEGABYTES)]) as running:
                    async for piece in running.output():
                        if piece.stream == "stdout":
                            seen.update(piece.data)
                        else:
                            told += piece.data
                results["flood"] = told.decode().strip() == seen.hexdigest()

            async def converse() -> None:
                sent, got = hashlib.sha256(), hashlib.sha256()
                async with sandbox.commands.start(["python3", "-c", BOTH_WAYS]) as echoing:
                    assert (await anext(echoing.output())).data == b"ready\n"
                    async with sandbox.ports.connect(7778) as connection, anyio.create_task_group() as tasks:

                        async def send() -> None:
                            for start in range(0, len(data), 65_536):
                                sent.update(data[start : start + 65_536])
                                await connection.send(data[start : start + 65_536])
                            await connection.end()

                        tasks.start_soon(send)
                        while piece := await connection.receive():
                            got.update(piece)
                results["connection"] = sent.digest() == got.digest()

            async with anyio.create_task_group() as tasks:
                for act in (upload, download, flood, converse):
                    tasks.start_soon(act)
                rests = 0
                while len(results) < 4:
                    await anyio.sleep(0.4)
                    facts = await sandbox.suspend()
                    await sandbox.resume()
                    rests += 1
                    print(rests, facts, results)
            assert results == dict.fromkeys(("upload", "download", "flood", "connection"), True)
            assert rests >= 3

    anyio.run(main)


@pytest.mark.timeout(60)
def test_a_call_resumes_it_unless_that_is_forbidden(daemon: Daemon, no_trace: None) -> None:
    async def main() -> None:
        async with sandbox_of(daemon) as sandbox:
            await said(sandbox, "touch", "there")
            await sandbox.suspend()
            assert (await sandbox.files.stat("there")).type == "file"
            assert (await sandbox.refresh()).state == "running"
        async with sandbox_of(daemon, auto_resume=False) as sandbox:
            await sandbox.suspend()
            with pytest.raises(StateConflict):
                await sandbox.commands.run("true")
            assert (await sandbox.refresh()).state == "suspended"
            await sandbox.resume()
            assert await said(sandbox, "echo", "here") == "here\n"

    anyio.run(main)


@pytest.mark.timeout(300)
def test_many_clients_want_different_things_at_once(daemon: Daemon, no_trace: None) -> None:
    async def main() -> None:
        async with sandbox_of(daemon) as sandbox:
            rests = 0

            async def client(number: int) -> None:
                nonlocal rests
                async with AsyncClient(daemon.url) as own:
                    ours = await AsyncSandbox.connect(sandbox.id, client=own)
                    for turn in range(4):
                        match (number + turn) % 3:
                            case 0:
                                rests += (await ours._lives("suspend", {}, 60)).state == "suspended"
                            case 1:
                                await ours.resume()
                            case 2:
                                assert await said(ours, "echo", str(number)) == f"{number}\n"

            async with anyio.create_task_group() as tasks:
                for number in range(6):
                    tasks.start_soon(client, number)
            assert rests >= 2
            assert await said(sandbox, "echo", "here") == "here\n"

            async def tolerant(act: Callable[[], Awaitable[object]]) -> None:
                with suppress(StateConflict, NotFound, GuestError):
                    await act()

            async with anyio.create_task_group() as tasks:
                for act in (sandbox.suspend, sandbox.resume, sandbox.kill, sandbox.suspend, sandbox.resume):
                    tasks.start_soon(tolerant, act)

    anyio.run(main)
