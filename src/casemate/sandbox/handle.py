"""A sandbox as its users hold it: they ask, and its supervisor acts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import anyio

from casemate import errors
from casemate.sandbox.link import Link
from casemate.sandbox.parking import Parking
from casemate.sandbox.snapshot import Taken
from casemate.sandbox.spec import SandboxInfo, SandboxSpec, StateReason
from casemate.sandbox.states import Action, Reason, State, go
from casemate.sandbox.usage import Usage
from casemate.vmm import Machine

CHANGE_S = 180.0  # how long a call is held while its sandbox is suspended or resumed
MAX_KEPT_S = 30 * 86_400
PASSING = (State.SUSPENDING, State.RESUMING)


@dataclass(eq=False)
class Wish:
    """A suspend or a resume that was asked for: all who ask meanwhile share it. Or a copy *into* a folder, for one."""

    action: Action
    actor: str
    cold: bool = False
    if_unused: bool = False  # refused when somebody uses it by the time that it begins
    into: Path | None = None
    taken: Taken | None = None  # what came of that
    begun: bool = False
    unwanted: asyncio.Event = field(default_factory=asyncio.Event)  # who asked for it waits for its end only
    failure: errors.CasemateError | None = None
    done: asyncio.Event = field(default_factory=asyncio.Event)

    def grant(self) -> None:
        self.done.set()

    def refuse(self, failure: errors.CasemateError) -> None:
        self.failure = failure
        self.done.set()


@dataclass(eq=False)
class Handle:
    """A sandbox as its users see it: what it is, how to talk to it, how to ask for its rest and its end."""

    info: SandboxInfo
    spec: SandboxSpec
    actor: str = "host"  # whose key asked for it
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    _link: Link | None = None
    _machine: Machine | None = None
    _stop: asyncio.Event = field(default_factory=asyncio.Event)
    _why: StateReason | None = None
    _wishes: list[Wish] = field(default_factory=list)
    _wished: asyncio.Event = field(default_factory=asyncio.Event)
    _console: bytes = b""  # what it said last, as far as anybody has asked
    _console_written: int = 0  # all that its machine ever said
    _born_at: float = field(default_factory=lambda: time.clock_gettime(time.CLOCK_BOOTTIME))
    usage: Usage = field(default_factory=Usage)
    parking: Parking = field(default_factory=Parking)
    _recording: asyncio.Lock = field(default_factory=asyncio.Lock)

    # --------------------------------------------------------------------------------------- talking

    @property
    def link(self) -> Link:
        """Raises StateConflict unless the sandbox is running; the link's own failure if it has one."""
        go(self.info.state, Action.USE, f"sandbox {self.info.id}")
        assert self._link is not None, "a running sandbox has a link"
        return self._link

    @asynccontextmanager
    async def reach(self) -> AsyncIterator[Link]:
        """A running sandbox's link for a block, during which it is busy. A suspended one is resumed first.

        The call is held while it is being suspended or resumed. Raises StateConflict where it neither runs nor may
        be resumed by a call; what the resume raises.
        """
        with self.usage.busy():
            await self._settled()
            while self.info.state is State.SUSPENDED:
                if not self.info.auto_resume:
                    raise errors.StateConflict(
                        f"sandbox {self.info.id} is suspended, and was made with auto_resume off",
                        hint=f"casemate resume {self.info.id}",
                    )
                await self.resume(self.actor)
                await self._settled()  # somebody may have had it suspended again at once
            link = self.link
            await self.parking.wake()
            yield link

    async def awake(self) -> None:
        """As reach, for somebody who has a channel already and is about to say something on it."""
        async with self.reach():
            pass

    async def console(self) -> bytes:
        if (machine := self._machine) is not None:
            self._console = await machine.console()
            self._console_written = machine.console_written
        return self._console

    async def console_since(self, offset: int) -> tuple[bytes, int]:
        """What the console said from its byte *offset* on, as far as it is still held, and the offset after it."""
        held, written = await self.console(), self._console_written
        fresh = written - offset if written >= offset else written  # another machine counts from 0
        return held[-fresh:] if fresh > 0 else b"", written

    # --------------------------------------------------------------------------------------- its use

    def begin(self) -> None:
        """Its life for who uses it begins now, whenever it was made."""
        self.born_ago(0.0)
        self.usage.touch()

    @property
    def parked(self) -> bool:
        """It runs, and is frozen until somebody needs it."""
        return self.parking.parked and self.info.state is State.RUNNING

    async def park(self, wanted: Callable[[], bool]) -> bool:
        """Its supervisor's to call. Raises HostError, VmmError."""
        if self._machine is None or self._link is None:
            return False
        return await self.parking.park(self._machine, self._link, wanted)

    async def keep_alive(self, for_s: float) -> SandboxInfo:
        """It counts as in use for so long from now on. A call as any other: see ``reach``. Raises InvalidSpec."""
        if not 0 < for_s <= MAX_KEPT_S:
            raise errors.InvalidSpec(f"for_s is {for_s:g}; it must be over 0 and at most {MAX_KEPT_S} (30 days)")
        async with self.reach():
            self.usage.keep(for_s)
        return self.info

    def born_ago(self, lived_s: float) -> None:
        """It began so long before now, and before this daemon."""
        self._born_at = time.clock_gettime(time.CLOCK_BOOTTIME) - lived_s

    @property
    def stopping(self) -> bool:
        """Its end was asked for."""
        return self._stop.is_set()

    def too_old(self) -> StateReason | None:
        limit_s = self.spec.max_duration_s
        lived_s = time.clock_gettime(time.CLOCK_BOOTTIME) - self._born_at  # created_at is the wall's, which may jump
        if limit_s is None or lived_s <= limit_s:
            return None
        return StateReason(Reason.MAX_DURATION.value, f"lived for its max_duration_s of {limit_s:g} s")

    # --------------------------------------------------------------------------------------- its life

    def move(self, action: Action, **changes: object) -> None:
        """Its supervisor's to call: what is, is now another. Raises StateConflict where there is no such edge."""
        state = go(self.info.state, action, f"sandbox {self.info.id}")
        self.info = replace(self.info, state=state, updated_at=time.time(), **changes)  # type: ignore[arg-type]
        self.changed.set()
        self.changed.clear()

    def ask_stop(self, reason: Reason, message: str) -> None:
        """Request the end; the first reason given stays. Returns at once."""
        self._why = self._why or StateReason(reason.value, message)
        self._stop.set()

    async def kill(self, reason: Reason = Reason.KILLED, message: str = "killed by its user") -> SandboxInfo:
        """End it and wait until nothing of it is left. Safe to call twice, also at once."""
        self.ask_stop(reason, message)
        await self.ended.wait()
        return self.info

    async def suspend(self, actor: str = "host", *, if_unused: bool = False) -> SandboxInfo:
        """Its memory, device state and disk are on the host's disk when this returns, and nothing of it runs.

        *if_unused*: a call that comes before it begins keeps it running. One that is suspended already is answered
        as it is. Raises StateConflict, and what kept it from being suspended: then it goes on running.
        """
        await self._settled()
        if self.info.state is not State.SUSPENDED:
            await self._want(Wish(Action.SUSPEND, actor, if_unused=if_unused))
        return self.info

    async def resume(self, actor: str = "host", *, cold: bool = False) -> SandboxInfo:
        """It runs as it was when this returns; *cold*: booted anew from its disk. One that runs stays as it is.

        Raises StateConflict, and what kept it from being resumed: then it stays suspended.
        """
        await self._settled()
        while cold and not self.ended.is_set() and (wish := self._pending(Action.RESUME)):
            if wish.cold:
                break
            with suppress(errors.CasemateError):  # if somebody's warm one fails, it is booted anew
                await self._want(wish)
            await self._settled()
        if self.info.state is not State.RUNNING:
            await self._want(Wish(Action.RESUME, actor, cold))
        return self.info

    async def check_copyable(self) -> None:
        """A call as any other: see ``reach``. Raises NotSupported when its agent cannot be asked to be a copy."""
        async with self.reach() as link:
            if not link.knows_copies:
                raise errors.NotSupported(
                    f"sandbox {self.info.id} cannot be copied: its agent is of an older Casemate, which knew no copies",
                    hint=f"suspend it, then start it anew from its disk: casemate resume --cold {self.info.id};"
                    " or create another one",
                )

    async def take(self, into: Path, actor: str = "host") -> Taken:
        """Its whole state of one moment is in the folder *into* when this returns; it goes on exactly as before.

        A call as any other: see ``reach``. Cancelled or failed it goes on, too, and nobody writes *into* any more.
        Raises StateConflict, and what kept it from being copied.
        """
        with self.usage.busy():
            while True:
                await self.awake()
                wish = Wish(Action.SNAPSHOT, actor, into=into)
                try:
                    await self._want(wish)
                except errors.StateConflict:
                    if self.info.state not in (*PASSING, State.SUSPENDED):  # if it is, it was so before its turn came
                        raise
                except BaseException:
                    await self._withdraw(wish)
                    raise
                else:
                    assert wish.taken is not None, "it was granted"
                    return wish.taken

    async def _withdraw(self, wish: Wish) -> None:
        wish.unwanted.set()
        if not wish.begun:
            self.forget_wish(wish)
            return
        with anyio.CancelScope(shield=True):
            await wish.done.wait()

    async def wished(self) -> Wish:
        """What somebody wants of its supervisor, who grants or refuses it and says so by ``forget_wish``."""
        while not self._wishes:
            self._wished.clear()
            await self._wished.wait()
        return self._wishes[0]

    def forget_wish(self, wish: Wish) -> None:
        """It is granted or refused; what somebody has asked for since stays."""
        if wish in self._wishes:
            self._wishes.remove(wish)

    def _pending(self, action: Action) -> Wish | None:
        return next((wish for wish in self._wishes if wish.action is action), None)

    async def _want(self, wish: Wish) -> None:
        if wish.into is None and (same := self._pending(wish.action)) is not None:
            same.if_unused &= wish.if_unused
            wish = same
        else:
            go(self.info.state, wish.action, f"sandbox {self.info.id}")
            self._wishes.append(wish)
            self._wished.set()
        async with anyio.create_task_group() as race:  # the wish stays, whoever stops waiting for it

            async def give_up() -> None:
                await self.ended.wait()
                race.cancel_scope.cancel()

            race.start_soon(give_up)
            await wish.done.wait()
            race.cancel_scope.cancel()
        if wish.failure is not None:
            raise wish.failure
        if not wish.done.is_set():
            raise errors.StateConflict(f"sandbox {self.info.id} ended before that")

    async def _settled(self) -> None:
        """Wait while it is being suspended or resumed."""
        try:
            with anyio.fail_after(CHANGE_S):
                while self.info.state in PASSING:
                    await self.changed.wait()
        except TimeoutError as error:
            raise errors.StateConflict(
                f"sandbox {self.info.id} is {self.info.state.value} for over {CHANGE_S:g} s", hint="try again later"
            ) from error
