"""A guest whose stream is lost goes on, quietly, and answers on the next one."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest
from machines import Clone, open_clone, open_driver
from vm_world import Daemon

pytestmark = pytest.mark.vm
LOSSES = 100
QUIET_S = 10.0
TICKS_PER_S = 100  # what /proc/stat counts in: USER_HZ on every architecture


async def agent_ticks(clone: Clone) -> int:
    """CPU time of PID 1, in ticks."""
    output, _ = await clone.run("cat", "/proc/1/stat")
    fields = output.rpartition(b")")[2].split()
    return int(fields[11]) + int(fields[12])


def test_a_stream_lost_a_hundred_times(daemon: Daemon, tmp_path: Path, no_trace: None) -> None:
    async def lose_and_ask() -> None:
        async with open_driver(daemon.home) as driver, open_clone(driver, daemon.home, tmp_path) as clone:
            for number in range(LOSSES):
                await clone.lose_stream()
                output, _ = await clone.run("echo", str(number))
                assert output == b"%d\n" % number

    anyio.run(lose_and_ask)


def test_an_agent_nobody_listens_to_is_idle(daemon: Daemon, tmp_path: Path, no_trace: None) -> None:
    """The host's end is closed for 10 s: the port reads as ended the whole time, which must not spin."""

    async def leave_it_alone() -> float:
        async with open_driver(daemon.home) as driver, open_clone(driver, daemon.home, tmp_path) as clone:
            before = await agent_ticks(clone)
            clone._carrying.cancel()
            await clone.link.ended.wait()
            clone.machine.stream.close()
            await anyio.sleep(QUIET_S)
            await clone.lose_stream()
            return (await agent_ticks(clone) - before) / TICKS_PER_S

    assert anyio.run(leave_it_alone) < 0.4 * QUIET_S  # the second hand-shake is most of it; one that spins takes it all
