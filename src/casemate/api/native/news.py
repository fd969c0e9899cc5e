"""Progress of something long, told line by line while it goes on; it never waits for who listens."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import anyio

from casemate.api.native.streams import Lines

NEWS_KEPT = 256  # for a client that does not read; the oldest go first
T = TypeVar("T")
Progress = Callable[[str, str, float | None], None]


async def with_news(out: Lines, act: Callable[[Progress], Awaitable[T]]) -> T:
    """The result of *act*, after all of its news that were kept have been put into *out*."""
    news, latest = anyio.create_memory_object_stream[dict[str, Any]](NEWS_KEPT)

    def progress(step: str, message: str, fraction: float | None) -> None:
        if news.statistics().current_buffer_used == NEWS_KEPT:
            latest.receive_nowait()
        news.send_nowait({"event": "progress", "step": step, "message": message, "fraction": fraction})

    async def pass_on() -> None:
        async for line in latest:
            await out.say(line)

    with latest, news:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(pass_on)
            result = await act(progress)
            news.close()  # what is still in it is passed on before the group ends
    return result
