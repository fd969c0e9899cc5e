"""A guest whose agent was taken over answers the hand-shake with nonsense: that ends it, and nobody else."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest
from sandbox_world import TENANT, World
from test_copies import room_for_little, run
from test_suspend_resume import answers, lone
from tests.fakes.fake_vmm import Agent, FakeMachine

from casemate import errors, wire
from casemate.guest.handshake import Handshake, Hello

__all__ = ["room_for_little"]
LIES = [{"proof": "é"}, {"proof": "\ud800"}, {"boot_id": "\ud800"}]


class Liar(Handshake):
    def __init__(self, lie: dict[str, str]) -> None:
        self._lie = lie

    def apply(self, hello: Hello) -> dict[str, Any]:
        return {"generation": 1, "boot_id": "", "wall_clock_ns": hello.wall_clock_ns, "proof": ""} | self._lie


@pytest.mark.parametrize("lie", LIES)
def test_after_a_copy_it_ends_its_own_sandbox(tmp_path: Path, lie: dict[str, str], no_trace: None) -> None:
    async def main(world: World) -> None:
        victim, other = await lone(world, name="victim"), await lone(world)
        machine = victim._machine
        assert isinstance(machine, FakeMachine)
        machine.agent._handshake = Liar(lie)
        with pytest.raises(errors.CasemateError):
            await world.sandboxes.fork(TENANT, "victim", 1)
        with anyio.fail_after(10):
            await victim.ended.wait()
        await answers(other)

    run(tmp_path, main)


class Older(Handshake):
    """As it was before there were copies."""

    def apply(self, hello: Hello) -> dict[str, Any]:
        ready = super().apply(hello)
        del ready["copy"]
        return ready


def test_one_whose_agent_knows_no_copies_is_refused(tmp_path: Path, no_trace: None) -> None:
    """It was suspended when its Casemate was replaced."""
    steps = list[str]()

    async def main(world: World) -> None:
        parent = await lone(world)
        machine = parent._machine
        assert isinstance(machine, FakeMachine)
        machine.agent._handshake = Older(machine.agent._handshake._machine, "older")
        await parent.suspend()
        await parent.resume()
        alone = world.admission.reserved
        steps.clear()
        for ask in (
            partial(world.sandboxes.fork, TENANT, parent.info.id, 1),
            partial(world.sandboxes.take, TENANT, parent.info.id, image="work@1"),
        ):
            with pytest.raises(errors.NotSupported, match=f"{parent.info.id} cannot be copied: .*older") as refused:
                await ask()
            assert "resume --cold" in refused.value.hint
        assert (steps, world.admission.reserved, list((tmp_path / "snapshots").iterdir())) == ([], alone, [])
        await answers(parent)
        await parent.kill()

    run(tmp_path, main, reach=lambda name, _: steps.append(name))


class Refusing(Agent):
    """It says why it thaws nobody, in what is no text."""

    def _on(self, event: wire.Event) -> None:
        if isinstance(event, wire.Opened) and event.params.get("op") == "thaw":
            self.connection.deny(event.channel, "guest-error", "\ud800", message="\ud800", errno="\ud800")
        else:
            super()._on(event)


def test_a_reason_that_is_no_text_is_recorded_as_one(tmp_path: Path, no_trace: None) -> None:
    async def main(world: World) -> None:
        victim, other = await lone(world, name="victim"), await lone(world)
        machine = victim._machine
        assert isinstance(machine, FakeMachine)
        machine.agent.__class__ = Refusing
        with pytest.raises(errors.CasemateError):
            await world.sandboxes.fork(TENANT, "victim", 1)
        with anyio.fail_after(10):
            await victim.ended.wait()
        reason = (await world.sandboxes.info(TENANT, victim.info.id)).state_reason
        assert reason is not None
        assert "could not be thawed: \ufffd" in reason.message
        reason.message.encode()
        await answers(other)

    run(tmp_path, main)
