"""Who is started or resumed takes turns for the processors: a hundred at once would all be too slow."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import anyio
import pytest
from sandbox_world import TENANT, open_world

from casemate.errors import HostError
from casemate.sandbox import SandboxSpec, starting

AT_ONCE, MANY = 2, 10
BEGINS = {"machine": "start", "resume-machine": "resume"}
ENDS = {"run": "start", "resume-run": "resume"}


def test_no_more_than_a_few_are_started_or_resumed_at_once(
    tmp_path: Path, no_trace: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(starting, "STARTS_AT_ONCE", AT_ONCE)
    now: Counter[str] = Counter()
    most: Counter[str] = Counter()

    def reach(name: str, moment: str) -> None:
        if moment == "enter" and (what := BEGINS.get(name)):
            now[what] += 1
            most[what] = max(most[what], now[what])
        if moment == "enter" and (what := ENDS.get(name)):
            now[what] -= 1

    async def main() -> None:
        async with open_world(tmp_path, reach=reach) as world:

            async def create() -> None:
                world.known.append((await world.sandboxes.create(TENANT, SandboxSpec())).info.id)

            async with anyio.create_task_group() as tasks:
                for _ in range(MANY):
                    tasks.start_soon(create)
            for act in (world.sandboxes.suspend, world.sandboxes.resume):
                async with anyio.create_task_group() as tasks:
                    for sandbox in world.known:
                        tasks.start_soon(act, TENANT, sandbox)
            await world.settle()

    anyio.run(main)
    assert 0 < most["start"] <= AT_ONCE  # without turns some seven and five
    assert 0 < most["resume"] <= AT_ONCE


def test_who_fails_gives_its_turn_back(tmp_path: Path, no_trace: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starting, "STARTS_AT_ONCE", 1)

    def reach(name: str, moment: str) -> None:
        if (name, moment) == ("handshake", "enter") and failing:
            failing.pop()
            raise HostError("as if the host refused")

    failing = [1, 2, 3]

    async def main() -> None:
        async with open_world(tmp_path, reach=reach) as world:
            for _ in range(3):
                with pytest.raises(HostError, match="as if"):
                    await world.sandboxes.create(TENANT, SandboxSpec())
            with anyio.fail_after(10):
                world.known.append((await world.sandboxes.create(TENANT, SandboxSpec())).info.id)
            await world.settle()

    anyio.run(main)
