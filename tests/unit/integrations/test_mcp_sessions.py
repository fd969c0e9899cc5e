"""Whose sandbox is whose, when several calls of a session find out at once that it has ended."""

from __future__ import annotations

from typing import Any, cast

import anyio

from casemate.errors import NotFound
from casemate.integrations.mcp.sessions import Sessions, open_sessions
from casemate.sdk import AsyncSandbox


class Box:
    """Stands for a sandbox that ended; it says so when it is let."""

    def __init__(self, number: int) -> None:
        self.id, self.killed = str(number), 0
        self.may_say = anyio.Event()

    async def refresh(self) -> Any:
        await self.may_say.wait()
        raise NotFound("it has ended")

    async def kill(self) -> None:
        self.killed += 1


def test_who_hears_late_of_an_end_ends_no_other_sandbox() -> None:
    boxes: list[Box] = []

    async def create() -> AsyncSandbox:
        boxes.append(Box(len(boxes)))
        return cast(AsyncSandbox, boxes[-1])

    async def late(sessions: Sessions, told: list[str | None]) -> None:
        told.append(await sessions.forget_if_ended("s"))

    async def run() -> None:
        async with open_sessions(create) as sessions:
            first = await sessions.sandbox("s")
            told: list[str | None] = []
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(late, sessions, told)
                await anyio.wait_all_tasks_blocked()
                await sessions.end("s")  # as the call that heard of it first does
                second = await sessions.sandbox("s")
                assert second is not first
                boxes[0].may_say.set()
            assert told == ["it has ended"]
            assert boxes[1].killed == 0
            assert await sessions.sandbox("s") is second
        assert [box.killed for box in boxes] == [1, 1]

    anyio.run(run)
