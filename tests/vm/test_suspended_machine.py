"""A clone that was saved and killed goes on where it was, with everything it had and every byte of its stream."""

from __future__ import annotations

import hashlib
import os
import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio
import pytest
from machines import open_driver, template_of
from suspending import Suspendable, drain, open_suspendable, untaken
from vm_world import Daemon

from casemate import errors
from casemate.host.mapping import PAGE_BYTES, read_pagemap, scan
from casemate.sandbox import execs

pytestmark = pytest.mark.vm
COUNT = "i=0; while :; do i=$((i+1)); echo $i > /dev/shm/count; sleep 0.02; done"
LINES = 60_000


@pytest.fixture
def suspendable(
    daemon: Daemon, tmp_path: Path, no_trace: None
) -> Callable[[Callable[[Suspendable], Awaitable[None]]], None]:
    def run(body: Callable[[Suspendable], Awaitable[None]]) -> None:
        async def opened() -> None:
            async with open_driver(daemon.home) as driver, open_suspendable(driver, daemon.home, tmp_path) as clone:
                await body(clone)

        anyio.run(opened)

    return run


Runner = Callable[[Callable[[Suspendable], Awaitable[None]]], None]


def test_everything_is_there_after_two_rounds(suspendable: Runner) -> None:
    async def body(clone: Suspendable) -> None:
        await clone.run(
            "sh", "-c", "head -c 3000000 /dev/urandom > /dev/shm/f; head -c 3000000 /dev/urandom > /var/tmp/f"
        )
        sums = await clone.run("sha256sum", "/dev/shm/f", "/var/tmp/f")
        async with execs.start(clone.link, execs.ExecSpec(("sh", "-c", COUNT))):
            last = 0
            for _ in range(2):
                await anyio.sleep(0.3)
                await clone.suspend_and_resume()
                await anyio.sleep(0.3)
                count = int(await clone.run("cat", "/dev/shm/count"))
                assert count > last
                last = count
                assert await clone.run("sha256sum", "/dev/shm/f", "/var/tmp/f") == sums

    suspendable(body)


def test_the_stream_goes_on_without_a_byte_lost_or_repeated(suspendable: Runner) -> None:
    """Neither side begins anew: the guest sees no hang-up, and what was under way arrives once."""

    async def body(clone: Suspendable) -> None:
        digest, received = hashlib.sha256(), 0
        async with execs.start(clone.link, execs.ExecSpec(("seq", str(LINES)))) as running:
            while isinstance(piece := await running.read(), execs.Output):
                digest.update(piece.data)
                received += len(piece.data)
                if clone.rounds < 3 and received > 60_000 * (clone.rounds + 1):
                    await clone.suspend_and_resume()
        wanted = "".join(f"{number}\n" for number in range(1, LINES + 1)).encode()
        assert received == len(wanted)
        assert digest.digest() == hashlib.sha256(wanted).digest()
        assert clone.rounds == 3
        assert clone.link.failure is None

    suspendable(body)


def test_bytes_for_the_guest_arrive_once(suspendable: Runner) -> None:
    async def body(clone: Suspendable) -> None:
        content = os.urandom(600_000)

        async def feed(running: execs.Exec) -> None:
            for at in range(0, len(content), 20_000):
                await running.feed(content[at : at + 20_000])
            await running.end_input()

        output = b""
        async with execs.start(clone.link, execs.ExecSpec(("sha256sum",), stdin=True)) as running:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(feed, running)
                for _ in range(3):
                    await anyio.sleep(0.01)
                    await clone.suspend_and_resume()
            while isinstance(piece := await running.read(), execs.Output):
                output += piece.data
        assert output.split()[0].decode() == hashlib.sha256(content).hexdigest()

    suspendable(body)


def test_what_is_stored_is_what_was_written(suspendable: Runner) -> None:
    """As the kernel counts it, by either of its ways."""

    async def body(clone: Suspendable) -> None:
        await clone.run("sh", "-c", "head -c 8000000 /dev/urandom > /dev/shm/f")
        await clone.still()
        with await clone.machine._process.memory(clone.template.files.memory) as memory:  # type: ignore[attr-defined]
            counted = scan(memory.pagemap, memory.start, memory.size_bytes)
            assert list(counted) == list(read_pagemap(memory.pagemap, memory.start, memory.size_bytes))
        await clone.save()
        assert clone.saved is not None
        assert clone.saved.pages == counted.pages
        assert 8_000_000 < clone.saved.pages * PAGE_BYTES <= clone.saved.bytes < clone.saved.pages * PAGE_BYTES * 1.05

    suspendable(body)


def test_clocks_are_right_after_a_thaw(suspendable: Runner) -> None:
    async def body(clone: Suspendable) -> None:
        read = ("sh", "-c", "cut -d' ' -f1 /proc/uptime; date +%s.%N")
        before, began = [float(word) for word in (await clone.run(*read)).split()], time.time()
        await clone.machine.freeze()
        await anyio.sleep(4)
        await clone.machine.thaw()
        assert await clone.link.ping(timeout_s=5) < 100
        after, ended = [float(word) for word in (await clone.run(*read)).split()], time.time()
        for one, other in zip(before, after, strict=True):
            assert abs((other - one) - (ended - began)) < 0.5

    suspendable(body)


def test_a_vmm_killed_while_it_is_saved_is_told(suspendable: Runner, tmp_path: Path) -> None:
    async def body(clone: Suspendable) -> None:
        await clone.run("sh", "-c", "head -c 60000000 /dev/zero | tr '\\0' x > /dev/shm/f")
        await clone.still()

        async def kill(after_s: float) -> None:
            await anyio.sleep(after_s)
            os.kill(clone.machine.pid, signal.SIGKILL)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(kill, 0.03)
            with pytest.raises(errors.VmmExited):
                await clone.machine.save_difference(clone.template.files.memory, tmp_path / "partial")

    suspendable(body)


def test_what_is_written_to_a_paused_machine_stays_outside(suspendable: Runner) -> None:
    """So it would be lost with the VMM: nothing may be written from before the pause to the end."""

    async def body(clone: Suspendable) -> None:
        await clone.still()
        clone.link.connection.ping(bytes(8))
        clone.machine.stream.send(clone.link.connection.outgoing())
        await anyio.sleep(0.5)
        assert await drain(clone.machine, clone._relayed) == 0
        assert untaken(clone.machine.stream) > 0
        clone.relay()
        await clone.machine.unpause()
        await clone.link.ping(timeout_s=10)
        assert untaken(clone.machine.stream) == 0

    suspendable(body)


def test_the_template_is_as_it_was(suspendable: Runner, daemon: Daemon) -> None:
    files = template_of(daemon.home).files
    before = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (files.memory, files.state)]

    async def body(clone: Suspendable) -> None:
        await clone.suspend_and_resume()
        await clone.run("true")

    suspendable(body)
    assert [hashlib.sha256(path.read_bytes()).hexdigest() for path in (files.memory, files.state)] == before
