"""Who owns a sandbox: one per client session, made when it is first needed, gone with the session.

Not at ``initialize``: agents connect to every server they are configured with, and most sessions never call a tool.
A task per session opens its sandbox and closes it; a call only waits for it, and a cancelled call cancels nothing.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import anyio
from anyio.abc import TaskGroup

from casemate.errors import CasemateError, NotFound
from casemate.sdk import AsyncSandbox

KILL_S = 10.0  # afterwards the daemon ends it by itself: what is attached ends with our connection
ENDED = ("terminating", "terminated")

log = logging.getLogger(__name__)
Create = Callable[[], Awaitable[AsyncSandbox]]


class _Held:
    """A session's sandbox, from before it is made until after it is gone."""

    def __init__(self) -> None:
        self.scope = anyio.CancelScope()
        self.settled = anyio.Event()
        self.gone = anyio.Event()
        self.sandbox: AsyncSandbox | None = None
        self.failure: CasemateError | None = None


class Sessions:
    """The sandboxes of the sessions there are. A session is known by its id; over stdio there is one, ''."""

    def __init__(self, tasks: TaskGroup, create: Create) -> None:
        self._tasks = tasks
        self._create = create
        self._held: dict[str, _Held] = {}

    async def sandbox(self, session: str) -> AsyncSandbox:
        """The session's sandbox, made now if it has none. Raises what creating one does; the next call tries again."""
        held = self._held.get(session)
        if held is None:
            held = self._held[session] = _Held()
            self._tasks.start_soon(self._keep, session, held)
        await held.settled.wait()
        if held.sandbox is None:
            raise held.failure or NotFound("the session ended before its sandbox was there")
        return held.sandbox

    async def forget_if_ended(self, session: str) -> str | None:
        """Let go of a sandbox that is no more, and say why it is not; None while it lives."""
        held = self._held.get(session)
        if held is None or held.sandbox is None:
            return None
        try:
            info = await held.sandbox.refresh()
        except NotFound as error:
            reason = error.message
        except CasemateError:
            return None  # a daemon that can't be asked now: what it says next is what counts
        else:
            if info.state not in ENDED:
                return None
            reason = info.state_reason.code if info.state_reason is not None else info.state
        if self._held.get(session) is held:  # else another call was faster, and the session may have a new one by now
            await self.end(session)
        return reason

    async def end(self, session: str) -> None:
        """Kill the session's sandbox, if it has one. Answers when that is done, or left to the daemon."""
        held = self._held.pop(session, None)
        if held is not None:
            held.scope.cancel()
            await held.gone.wait()

    async def end_all(self) -> None:
        async with anyio.create_task_group() as tasks:
            for session in list(self._held):
                tasks.start_soon(self.end, session)

    async def _keep(self, session: str, held: _Held) -> None:
        try:
            with held.scope:
                held.sandbox = await self._create()
                log.info("session %s has sandbox %s", session[:8] or "of stdio", held.sandbox.id)
                held.settled.set()
                await anyio.sleep_forever()
        except CasemateError as error:
            held.failure = error
            if self._held.get(session) is held:
                del self._held[session]
        finally:
            held.settled.set()
            if held.sandbox is not None:
                await _kill(held.sandbox)
                held.sandbox = None
            held.gone.set()


async def _kill(sandbox: AsyncSandbox) -> None:
    with anyio.move_on_after(KILL_S, shield=True):
        try:
            await sandbox.kill()
        except CasemateError as error:
            log.warning("sandbox %s: %s", sandbox.id, error)


@asynccontextmanager
async def open_sessions(create: Create) -> AsyncIterator[Sessions]:
    """None of the sandboxes outlives the block."""
    async with anyio.create_task_group() as tasks:
        sessions = Sessions(tasks, create)
        try:
            yield sessions
        finally:
            with anyio.CancelScope(shield=True):
                await sessions.end_all()
            tasks.cancel_scope.cancel()
