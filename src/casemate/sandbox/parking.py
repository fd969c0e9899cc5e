"""Parked: the VMM's process is frozen whole. It costs no CPU, and the guest notices nothing but the hour.

Its supervisor parks it (``rest``); whoever wants something of the guest wakes it first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import anyio

from casemate.errors import HostError
from casemate.sandbox.link import Link
from casemate.vmm import Machine

SIGNAL_S = 10.0  # a frozen process is a signal away; this is for a host that hardly answers


class Parking:
    """Whether one sandbox is parked. One change at a time: who comes while it is being frozen thaws it."""

    def __init__(self) -> None:
        self.parked = False
        self.woken = asyncio.Event()
        self.woken.set()
        self._turn = anyio.Lock()
        self._machine: Machine | None = None
        self._link: Link | None = None

    async def park(self, machine: Machine, link: Link, wanted: Callable[[], bool]) -> bool:
        """Freeze it, if *wanted* still says so when it is our turn; whether it is parked now.

        Cancelled: it is either frozen and parked, or neither. Raises HostError, VmmError: it is not parked.
        """
        async with self._turn:
            if self.parked or not wanted():
                return self.parked
            with _at_once("frozen"):
                await machine.freeze()
                self._machine, self._link = machine, link
                link.stand_still(True)
                self.parked = True
                self.woken.clear()
            return True

    async def wake(self) -> None:
        """Let it run, if it is parked. Raises HostError, VmmError: it is parked still."""
        if not self.parked and not self._turn.locked():
            return
        async with self._turn:
            if self._machine is None or self._link is None:
                return
            with _at_once("thawed"):
                await self._machine.thaw()
                self._link.stand_still(False)
                self._machine = self._link = None
                self.parked = False
                self.woken.set()


@contextmanager
def _at_once(what: str) -> Iterator[None]:
    """Not to be cancelled halfway. Raises HostError: a VMM that is slow to answer somebody else holds it up, too."""
    try:
        with anyio.fail_after(SIGNAL_S, shield=True):
            yield
    except TimeoutError as error:
        raise HostError(f"a VMM could not be {what} within {SIGNAL_S:g} s", hint="see casemate doctor") from error
