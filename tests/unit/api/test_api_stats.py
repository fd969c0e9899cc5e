"""What a sandbox takes: the kernel's figures, the agent's, and what happens to an agent that lies."""

import os

import pytest
from api_world import reason

from casemate.errors import ProtocolViolation
from casemate.sandbox.stats import Guest, _of_process

HONEST = {
    "user": {"memory_bytes": 10, "processes": 2},
    "memory_total_bytes": 2**29,
    "memory_available_bytes": 2**28,
    "execs": 3,
    "execs_running": 1,
}


def test_the_figures(serve):
    async def scenario(world):
        sandbox = await world.create()
        guest, handle = world.guest(sandbox), world.sandboxes.handles[sandbox]
        guest.stats = HONEST
        before = handle.usage.used_at
        answer = await world.client.get(f"/v1/sandboxes/{sandbox}/stats")
        assert answer.status_code == 200
        body = answer.json()
        assert body["guest"]["memory_available_bytes"] == 2**28
        assert body["guest"]["user_processes"] == 2
        assert handle.usage.used_at == before  # looking is not using
        assert body["parked"] is False
        handle.parking.parked = True  # a frozen agent is not asked
        parked = (await world.client.get(f"/v1/sandboxes/{sandbox}/stats")).json()
        assert (parked["guest"], parked["parked"]) == (None, True)
        assert (await world.client.get("/v1/sandboxes/none/stats")).status_code == 404

    serve(scenario)


def test_an_agent_that_lies_loses_its_machine(serve):
    async def scenario(world):
        sandbox = await world.create()
        world.guest(sandbox).stats = HONEST | {"execs": -1}
        answer = await world.client.get(f"/v1/sandboxes/{sandbox}/stats")
        assert (answer.status_code, answer.json()["code"]) == (502, "protocol-violation")
        handle = world.sandboxes.handles[sandbox]
        await handle.ended.wait()
        assert reason(handle).code == "protocol-violation"

    serve(scenario)


@pytest.mark.parametrize(
    "body",
    [
        {},
        HONEST | {"user": []},
        HONEST | {"user": {"memory_bytes": "much"}},
        HONEST | {"user": {"processes": True}},
        HONEST | {"memory_total_bytes": 2**70},
        HONEST | {"memory_available_bytes": 1.5},
        HONEST | {"execs_running": None},
    ],
)
def test_lies_are_found(body):
    with pytest.raises(ProtocolViolation):
        Guest.from_agent(body)


def test_a_guest_without_cgroups_says_less():
    assert Guest.from_agent(HONEST | {"user": {}}).user_memory_bytes is None


def test_the_kernels_figures_are_this_processes_own():
    ballast = bytearray(os.urandom(1 << 20) * 16)
    cpu_s, memory = _of_process(os.getpid())
    assert cpu_s == pytest.approx(sum(os.times()[:2]), abs=0.1)
    assert memory > len(ballast)
    assert _of_process(2**22 + 1) == (None, None)
