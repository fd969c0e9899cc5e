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

from casemate.errors import NotFound
from casemate.sandbox import Introduction, cells, execs, new_id

pytestmark = pytest.mark.vm

BEGUN = """
import os, random, threading, time
expected = random.Random(1).random()
random._inst.seed(1)
kept = 'kept'
print('begun', flush=True)
while not os.path.exists('/tmp/go'): pass
print(random.random() == expected)
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
            assert output == b"begun\nFalse\n"
            assert (await clone.run_code("kept"))[1].text == "'kept'"
            output, end = await rest_of(clone, now["echo one; read word; echo $word"], b"three\n")
            assert (output, end) == (b"one\nthree\n", execs.Exited(0))
            output, end = await rest_of(clone, now["echo two; read word; echo got $word"], b"four\n")
            assert output.replace(b"\r", b"") == b"two\nfour\ngot four\n"
            assert end == execs.Exited(0)

    anyio.run(run)
