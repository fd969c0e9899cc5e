"""A piece of work that many wait for: it goes on whoever stops waiting, and tells each how far it is."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import anyio
import structlog

from casemate import errors
from casemate.build.snapshot import Progress, the_error

log = structlog.get_logger()
T = TypeVar("T")


@dataclass(eq=False)
class Underway(Generic[T]):
    """Run by one task, ``run``; waited for by any number. A listener is called in the event loop and must not wait."""

    what: str
    _done: asyncio.Event = field(default_factory=asyncio.Event)
    _listeners: list[Progress] = field(default_factory=list)
    _last: tuple[str, str, float | None] | None = None
    _result: T | None = None
    _failure: errors.CasemateError | None = None

    async def run(self, work: Callable[[Progress], Awaitable[T]], *, limit_s: float) -> None:
        """Do *work* within *limit_s*; what it raises is told to who waits, not raised here."""
        self._failure = errors.HostFull(f"{self.what} was given up: the daemon is stopping", hint="try again")
        try:
            with anyio.fail_after(limit_s):
                self._result = await work(self.tell)
            self._failure = None
        except TimeoutError:
            self._failure = errors.BootTimeout(
                f"{self.what} took over {limit_s:g} s", hint="the host may be overloaded; see casemate doctor"
            )
        except Exception as raised:  # it is for who waits to raise; a failed build must not take the daemon along
            error = the_error(raised)
            log.warning("a build failed", what=self.what, error=repr(error))
            self._failure = error if isinstance(error, errors.CasemateError) else _fault(self.what, error)
        finally:
            self._done.set()

    async def wait(self, progress: Progress | None) -> T:
        """Its result. Cancelled: it goes on for the others. Raises what the work raised."""
        with self._listening(progress):
            await self._done.wait()
        if self._failure is not None:
            raise _copy(self._failure)
        assert self._result is not None
        return self._result

    @property
    def progress(self) -> tuple[str, str, float | None] | None:
        """What it told last."""
        return self._last

    @property
    def failure(self) -> errors.CasemateError | None:
        return self._failure if self._done.is_set() else None

    def tell(self, step: str, message: str, fraction: float | None) -> None:
        self._last = (step, message, fraction)
        for listener in self._listeners:
            listener(*self._last)

    @contextmanager
    def _listening(self, progress: Progress | None) -> Iterator[None]:
        if progress is None:
            yield
            return
        if self._last is not None:  # who comes late learns at once where it stands
            progress(*self._last)
        self._listeners.append(progress)
        try:
            yield
        finally:
            self._listeners.remove(progress)


def _fault(what: str, error: BaseException) -> errors.CasemateError:
    return errors.CasemateError(f"{what} failed: {error!r}", hint="a fault of ours; the daemon's log has more")


def _copy(error: errors.CasemateError) -> errors.CasemateError:
    """Raised in many tasks, one exception would collect all their tracebacks."""
    return type(error)(error.message, hint=error.hint, retry=error.retry, evidence=error.evidence)
