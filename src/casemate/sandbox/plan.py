"""A plan: named steps in order, each with the name of what undoes it; and the one way to carry it out.

The supervisor's boot is such a plan, its teardown the same plan read backwards. Tests enumerate it to stop the
daemon at, in and between the steps.
"""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from casemate.errors import HostError, HostFull

T = TypeVar("T")
Moment = Literal["enter", "done"]
Reach = Callable[[str, Moment], None]


@dataclass(frozen=True, slots=True)
class Step(Generic[T]):
    """*open* does the step up to its yield and undoes it afterwards; what is undone elsewhere has no *undo*."""

    name: str
    open: Callable[[T], AbstractAsyncContextManager[None]]
    undo: str | None = None


def undone(plan: Sequence[Step[T]]) -> tuple[str, ...]:
    """The names of the teardown, in its order."""
    return tuple(step.undo for step in reversed(plan) if step.undo is not None)


def pass_by(name: str, moment: Moment) -> None:
    """Nothing happens at a step; what every daemon does that is not under test."""


@asynccontextmanager
async def carried_out(plan: Sequence[Step[T]], on: T, reach: Reach = pass_by) -> AsyncIterator[None]:
    """Read down to start, read up to stop. Failed or cancelled at any step: the steps before it are undone.

    Raises what a step raises, HostFull or HostError for what the host's file system refuses.
    """
    async with AsyncExitStack() as held:
        for step in plan:
            await held.enter_async_context(_carried_out(step, on, reach))
        yield


@asynccontextmanager
async def _carried_out(step: Step[T], on: T, reach: Reach) -> AsyncIterator[None]:
    reach(step.name, "enter")
    opened = False
    try:
        with refusals_named(step.name):
            async with step.open(on):
                opened = True
                reach(step.name, "done")
                try:
                    yield
                finally:
                    if step.undo is not None:
                        reach(step.undo, "enter")
    finally:
        if opened and step.undo is not None:
            reach(step.undo, "done")


@contextmanager
def refusals_named(what: str) -> Iterator[None]:
    """The file system's refusals, as errors that say who must act."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise HostFull(
                f"{what}: no space left on the host's disk", hint="free some disk space", evidence={"errno": "ENOSPC"}
            ) from error
        raise HostError(f"{what}: {error}", hint="see that the home's file system is whole and writable") from error
