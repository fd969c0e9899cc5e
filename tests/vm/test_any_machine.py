"""What holds for a machine that has booted and for one that was restored."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import anyio
import pytest
from machines import ANSWER_S, Clone

from casemate.sandbox import execs

pytestmark = pytest.mark.vm
Opener = Callable[[], AbstractAsyncContextManager[Clone]]
CLOCK_S = 2.0  # an exec under emulation takes its time, a boot five seconds


def test_it_is_who_the_handshake_says_and_runs_what_it_is_told(any_machine: Opener) -> None:
    async def run() -> None:
        async with any_machine() as machine:
            hostname, _ = await machine.run("cat", "/etc/hostname")
            assert hostname.decode().strip() == machine.link.guest_id[:12]
            machine_id, _ = await machine.run("cat", "/etc/machine-id")
            assert len(bytes.fromhex(machine_id.decode())) == 16
            now, ended = await machine.run("date", "+%s")
            assert abs(int(now) - time.time()) < CLOCK_S
            assert ended.end == execs.Exited(0)
            group, _ = await machine.run("cat", "/proc/self/cgroup")
            assert group.startswith(b"0::/user/")
            _, ended = await machine.run("sh", "-c", "kill -9 $$")
            assert ended.end == execs.Signaled(9)
            assert ended.cpu_ms is not None
            assert await machine.link.ping() < 1000 * ANSWER_S

    anyio.run(run)
