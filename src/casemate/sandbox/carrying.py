"""A link carried over its machine's stream; and the silence in which a machine can be saved.

Where the stream goes on in who is restored it is emptied, on both sides of the stop. Where it does not, host and guest
agree to rest while it still carries, it is let go, and the machine that goes on gets another one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio
from anyio.abc import TaskGroup

from casemate import errors

if TYPE_CHECKING:
    from casemate.sandbox.link import Link
    from casemate.vmm import Machine

QUIET_S = 10.0
DRAIN_S = 5.0
REOPEN_S = 10.0


class Carrier:
    """Runs *link* over the stream of *machine*. Made by ``carried``, used by the task that is in its block."""

    def __init__(self, link: Link, machine: Machine, tasks: TaskGroup) -> None:
        self._link, self._machine, self._tasks = link, machine, tasks
        self._is_away = False
        self._start()

    async def hush(self) -> None:
        """Nothing is under way to the guest when this returns; nor from it, where the stream is lost with the save.

        Raises AgentSilent, the link's failure. Whatever it did, ``unhush`` undoes it.
        """
        if self._machine.stream_survives:
            await self._link.hush(self._machine.stream, timeout_s=QUIET_S)
            return
        await self._link.agree_to_rest(timeout_s=QUIET_S)
        self._is_away = True
        self._link.rest()
        self._scope.cancel()

    async def drain(self) -> None:
        """Take what the VMM of the stopped machine still has for us. Raises AgentSilent."""
        if self._machine.stream_survives:
            # The question goes to the VMM and back; what the machine had said before has come by then
            await self._link.drained(self._machine.stream, self._machine.console, timeout_s=DRAIN_S)

    async def unhush(self) -> None:
        """The machine goes on, and so does who has a channel; the link still holds.

        Not to be cancelled. Without a stream it is the link's end, with the reason in its ``failure``.
        """
        if self._is_away:
            try:
                with anyio.fail_after(REOPEN_S, shield=True):
                    await self._over.wait()
                    await self._machine.reopen_stream()
                self._start()
            except TimeoutError:
                what = f"sandbox {self._link.guest_id}: its stream could not be opened again within {REOPEN_S:g} s"
                self._link.close(errors.AgentSilent(what))
            except errors.CasemateError as error:
                self._link.close(error)
        self._link.unhush()

    def _start(self) -> None:
        self._scope, self._over, self._is_away = anyio.CancelScope(), asyncio.Event(), False
        self._tasks.start_soon(self._carry, self._scope, self._over)

    async def _carry(self, scope: anyio.CancelScope, over: asyncio.Event) -> None:
        try:
            with scope:
                await self._link.run(self._machine.stream)
        finally:
            over.set()


@asynccontextmanager
async def carried(link: Link, machine: Machine) -> AsyncIterator[Carrier]:
    """For a block, over a machine that runs."""
    async with anyio.create_task_group() as tasks:
        try:
            yield Carrier(link, machine, tasks)
        finally:
            tasks.cancel_scope.cancel()
