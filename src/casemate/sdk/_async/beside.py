"""Do something beside something else. Written twice: a task here, a thread in ``_sync``."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import anyio
import anyio.to_thread

T = TypeVar("T")


@asynccontextmanager
async def beside(work: Callable[[], Coroutine[Any, Any, None]]) -> AsyncIterator[None]:
    """Run *work* while the block runs; what of it is left when the block ends is cancelled.

    Raises what *work* or the block raised, the block's first.
    """
    raised: BaseException | None = None
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(work)
            yield
            tasks.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        raised = group.exceptions[0]
    if raised is not None:
        raise raised


async def called(call: Callable[[T], object], value: T) -> None:
    """Call it, and wait for it if it is a coroutine function."""
    made = call(value)
    if inspect.isawaitable(made):
        await made


async def in_thread(call: Callable[[], T]) -> T:
    """The result of a call that blocks."""
    return await anyio.to_thread.run_sync(call)
