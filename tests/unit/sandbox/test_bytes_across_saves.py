"""What is fed to a program and what it says comes whole and once, however often its sandbox is saved meanwhile."""

from __future__ import annotations

import random
from pathlib import Path

import anyio
import pytest
from sandbox_world import TENANT, World
from test_suspend_resume import SUSPEND, Failing, lone, run

from casemate import errors
from casemate.host import remove_folder
from casemate.sandbox import Handle, execs
from casemate.sandbox.taking import plan

pytestmark = pytest.mark.usefixtures("each_stream")
MUCH = random.Random(1).randbytes(3 << 20)  # a dozen windows
TAKE = [step.name for step in plan()]


async def fed(running: execs.RunningExec) -> None:
    dice = random.Random(2)
    at = 0
    while at < len(MUCH):
        size = dice.choice((1, 300, 40_000, 200_000))
        await running.feed(MUCH[at : at + size])
        at += size
        await anyio.sleep(dice.choice((0, 0, 0.002)))
    await running.end_input()


async def saved_again_and_again(world: World, handle: Handle, failing: Failing, seed: int) -> None:
    dice = random.Random(seed)
    while True:
        act = dice.choice(("suspend", "suspend", "fork", "keep"))
        if dice.random() < 0.5:
            failing.at = dice.choice(SUSPEND[1:-1] if act == "suspend" else TAKE), dice.choice(("enter", "done"))
        try:
            if act == "suspend":
                await handle.suspend()
                await handle.resume()
            elif act == "fork":
                for copy in await world.sandboxes.fork(TENANT, handle.info.id, 1):
                    await copy.kill()
            else:
                remove_folder((await world.sandboxes.take(TENANT, handle.info.id, image="mine@1")).folder)
        except errors.HostFull:
            if failing.at is not None:  # it was not we
                raise
        failing.at = None
        await anyio.sleep(dice.random() / 50)


@pytest.mark.parametrize("seed", range(6))
def test_both_ways(tmp_path: Path, seed: int, no_trace: None) -> None:
    async def main(world: World, failing: Failing) -> None:
        handle, got = await lone(world), bytearray()
        async with (
            handle.reach() as link,
            execs.start(link, execs.ExecSpec(("cat",), stdin=True)) as running,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(fed, running)
            tasks.start_soon(saved_again_and_again, world, handle, failing, seed)
            while isinstance(found := await running.read(), execs.Output):
                got += found.data
            tasks.cancel_scope.cancel()
        assert bytes(got) == MUCH
        await handle.kill()

    run(tmp_path, main)
