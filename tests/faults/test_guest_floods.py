"""A guest that says as much as it can slows itself: another's pings hardly notice.

Both guests hang on one event loop, as in the daemon; the figures compare like with like, idle and flooded, in
turns, because the machine may be busy with other things.
"""

from __future__ import annotations

import statistics
from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio
import pytest
from tests.vm.machines import Clone, open_clone, open_driver
from tests.vm.vm_world import Daemon

from casemate.sandbox import execs

pytestmark = pytest.mark.vm
PINGS = 200
ROUNDS = 3
ALLOWED = 3.0


async def p99_ms(clone: Clone) -> float:
    found = []
    for _ in range(PINGS):
        found.append(await clone.link.ping())
        await anyio.sleep(0.001)
    return statistics.quantiles(found, n=100)[98]


async def flood_output(clone: Clone) -> None:
    async with execs.start(clone.link, execs.ExecSpec(("cat", "/dev/zero"))) as running:
        while isinstance(await running.read(), execs.Output):
            pass


async def flood_small_output(clone: Clone) -> None:
    script = "import os\nwhile True: os.write(1, b'x'); os.write(2, b'y')"
    async with execs.start(clone.link, execs.ExecSpec(("python3", "-c", script))) as running:
        while isinstance(await running.read(), execs.Output):
            pass


async def flood_starts(clone: Clone) -> None:
    async def start() -> None:
        while True:
            await clone.run("true")

    async with anyio.create_task_group() as tasks:
        for _ in range(8):
            tasks.start_soon(start)


@pytest.mark.parametrize("flood", [flood_output, flood_small_output, flood_starts], ids=lambda flood: flood.__name__)
def test_the_pings_of_another(
    flood: Callable[[Clone], Awaitable[None]], daemon: Daemon, tmp_path: Path, no_trace: None
) -> None:
    async def run() -> list[tuple[float, float]]:
        found = []
        (tmp_path / "a").mkdir()
        (tmp_path / "b").mkdir()
        async with (
            open_driver(daemon.home) as driver,
            open_clone(driver, daemon.home, tmp_path / "a") as loud,
            open_clone(driver, daemon.home, tmp_path / "b") as quiet,
        ):
            await p99_ms(quiet)
            for _ in range(ROUNDS):
                idle = await p99_ms(quiet)
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(flood, loud)
                    await anyio.sleep(0.2)
                    flooded = await p99_ms(quiet)
                    tasks.cancel_scope.cancel()
                found.append((idle, flooded))
        return found

    found = anyio.run(run, backend_options={"use_uvloop": True})
    print(found)
    assert min(flooded / idle for idle, flooded in found) <= ALLOWED, found
