"""A guest that agreed to rest goes on as soon as that is given up: it says nothing before it hears of it."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest
from sandbox_world import World
from test_suspend_resume import Failing, lone, run
from tests.fakes.fake_vmm import FakeMachine

from casemate import errors
from casemate.sandbox import link as links
from casemate.sandbox.rest import Rest

pytestmark = pytest.mark.usefixtures("each_stream")


@pytest.mark.parametrize("step", ["suspend-hush", "suspend-pause", "suspend-state", "suspend-memory"])
def test_when_a_suspend_failed(tmp_path: Path, step: str, no_trace: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "PING_EVERY_S", 3600.0)  # nobody happens to ask it anything
    monkeypatch.setattr(Rest, "run", lambda _: anyio.sleep_forever())

    async def main(world: World, failing: Failing) -> None:
        handle = await lone(world)
        machine = handle._machine
        assert isinstance(machine, FakeMachine)
        failing.at = (step, "done")
        with pytest.raises(errors.HostFull):
            await handle.suspend()
        with anyio.fail_after(10):
            while machine.agent.connection.resting:
                await anyio.sleep(0.001)
        await handle.kill()

    run(tmp_path, main)
