"""One task per sandbox: it opens everything of it, watches it, and closes it in reverse.

    life ─ reserve, intend, folder, record ┬ machine ─ disk … run ─ watched ┬ its end
                                           └──── suspended ◀───────────────┘ or a suspend

A sandbox lives in one machine after another: each is a plan of its own, and between two of them it is on the disk.
Everybody else holds a Handle and may only ask.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import anyio
import structlog
from anyio.abc import TaskStatus

from casemate import errors
from casemate.audit import EventKind
from casemate.sandbox.admission import Share
from casemate.sandbox.boot import Boot
from casemate.sandbox.handle import Handle, Wish
from casemate.sandbox.plan import Reach, Step, carried_out, pass_by
from casemate.sandbox.records import Records
from casemate.sandbox.rest import NEAR_S, Rest
from casemate.sandbox.resuming import Resumer
from casemate.sandbox.snapshot import Snapshot
from casemate.sandbox.starting import Starter, end, fault_of_ours, first_of, given_up, ours
from casemate.sandbox.states import Action, Reason, State
from casemate.sandbox.suspended import Place
from casemate.sandbox.suspending import LIMIT_S, Saving, Suspender
from casemate.sandbox.taking import Taking
from casemate.sandbox.taking import plan as taking_plan

log = structlog.get_logger()
WATCH_EVERY_S = 1.0
BootT = TypeVar("BootT", bound=Boot)


@dataclass(frozen=True, slots=True)
class Supervisor:
    """What all supervisors of one daemon share."""

    starter: Starter
    suspender: Suspender
    resumer: Resumer
    reach: Reach = pass_by
    park_margin_s: float = NEAR_S

    @property
    def records(self) -> Records:
        return self.starter.records

    async def supervise(
        self, handle: Handle, snapshot: Snapshot, share: Share | None = None, *, task_status: TaskStatus[None]
    ) -> None:
        """Run one sandbox from pending to terminated. Reports *started* when it runs.

        Raises, before started, what kept it from running; after that nothing: the end is in the info.
        """
        boot = Boot(handle, self.place_of(handle), share, _snapshot=snapshot)
        start = self.starter.start_plan(copy=snapshot.is_session)
        await self.start(boot, self.starter.life_plan(), start, task_status.started)

    async def start(
        self, boot: BootT, life: Sequence[Step[BootT]], start: Sequence[Step[BootT]], started: Callable[[], object]
    ) -> None:
        """As supervise, by these plans."""
        handle = boot.handle

        async def live() -> None:
            async with carried_out(life, boot, self.reach):
                with _kept_if_sealed(boot):
                    async with carried_out(start, boot, self.reach):
                        boot.started = True
                        started()
                        boot.failure = await self._watched(boot)
                    if boot.sealed:
                        await self._rest_and_resume(boot)

        await self._carry(boot, live)
        if not boot.started:
            raise boot.failure or given_up(handle)

    async def look_after(self, handle: Handle) -> None:
        """The same for one that an earlier daemon suspended."""
        boot = Boot(handle, self.place_of(handle), started=True, sealed=True)
        boot.intended.set()

        async def live() -> None:
            async with carried_out(self.resumer.adopt_plan(), boot, self.reach):
                with _kept_if_sealed(boot):
                    await self._rest_and_resume(boot)

        await self._carry(boot, live)

    def place_of(self, handle: Handle) -> Place:
        return Place(self.records.folders / handle.info.id)

    async def _carry(self, boot: Boot, live: Callable[[], Awaitable[None]]) -> None:
        handle = boot.handle
        try:
            async with anyio.create_task_group() as aside:
                aside.start_soon(_give_up_boot, handle, aside.cancel_scope)
                await live()
                aside.cancel_scope.cancel()
        except* errors.CasemateError as group:
            boot.failure = boot.failure or first_of(group)
        except* Exception as group:  # nobody else's sandbox goes with it, nor the daemon
            boot.failure = boot.failure or fault_of_ours(boot.id, group)
        finally:
            if not boot.kept:
                end(boot)
            handle._link = handle._machine = None
            handle.ended.set()
        if isinstance(boot.failure, errors.LeakedResource):
            log.error("something of a sandbox could not be released", sandbox=boot.id, error=str(boot.failure))

    def plan(self) -> tuple[Step[Boot], ...]:
        """The boot list: read down to start; the names at the right, read up, are the teardown."""
        return (*self.starter.life_plan(), *self.starter.start_plan())

    # --------------------------------------------------------------------------------- while it runs

    async def _watched(self, boot: Boot) -> errors.CasemateError | None:
        """As ``_watch``. A fault of ours in it is the end of this sandbox alone."""
        try:
            return await self._watch(boot)
        except Exception as error:
            if ours(error) is not None:
                raise
            return fault_of_ours(boot.id, error)

    async def _watch(self, boot: Boot) -> errors.CasemateError | None:
        """Until it is on the disk, somebody wants its end, its time is up, or its guest or VMM brings it about."""
        rest = Rest(boot.handle, near_s=self.park_margin_s)
        while True:
            wish = await self._until_something(boot.handle, rest)
            if wish is None:
                return await self._verdict(boot.handle)
            if wish.action is Action.RESUME:
                boot.handle.forget_wish(wish)
                wish.grant()
            elif wish.action is Action.SNAPSHOT:
                await self._take(boot, wish)
            elif await self._suspend(boot, wish):
                return None

    async def _until_something(self, handle: Handle, rest: Rest) -> Wish | None:
        link, machine = handle._link, handle._machine
        assert link is not None
        assert machine is not None
        wishes: list[Wish] = []

        async def first(wait: Callable[[], Awaitable[object]]) -> None:
            await wait()
            race.cancel_scope.cancel()

        async def until_wished() -> None:
            wishes.append(await handle.wished())

        async with anyio.create_task_group() as race:
            race.start_soon(first, handle._stop.wait)
            race.start_soon(first, link.ended.wait)
            race.start_soon(first, machine.wait_exit)
            race.start_soon(first, partial(_until_too_old, handle))
            race.start_soon(first, rest.run)
            race.start_soon(first, until_wished)
        over = handle._stop.is_set() or link.ended.is_set()
        return wishes[0] if wishes and not over else None

    async def _verdict(self, handle: Handle) -> errors.CasemateError | None:
        link, machine = handle._link, handle._machine
        assert link is not None
        assert machine is not None
        if handle._stop.is_set():
            # Who held a channel may have found the lie before us, and asked for the end
            why = handle._why
            lied = why is not None and why.code == Reason.PROTOCOL_VIOLATION
            return errors.ProtocolViolation(why.message) if why is not None and lied else None
        with anyio.move_on_after(0.5):  # a VMM that ends closes the stream first; its end is the better reason
            vmm_end = await machine.wait_exit()
            return errors.VmmExited(
                f"sandbox {handle.info.id}: its VMM ended with {vmm_end}",
                evidence={"console": (await handle.console())[-2000:].decode(errors="replace")},
            )
        return link.failure

    async def _suspend(self, boot: Boot, wish: Wish) -> bool:
        """Whether it is on the disk now. If not it runs on, and who asked for it is told why."""
        saving = Saving(boot, wish)
        try:
            with anyio.fail_after(LIMIT_S):
                await boot.handle.parking.wake()
                if wish.if_unused and boot.handle.usage.is_busy:
                    raise errors.StateConflict(f"sandbox {boot.id} is in use again", hint="it goes on running")
                async with carried_out(self.suspender.plan(), saving, self.reach):
                    pass
        except TimeoutError:
            failure: errors.CasemateError = errors.HostError(
                f"sandbox {boot.id} could not be stored within {LIMIT_S:g} s", hint="see casemate doctor"
            )
        except errors.CasemateError as error:
            failure = error
        else:
            boot.saving = saving
            return True
        boot.handle.forget_wish(wish)
        wish.refuse(failure)
        return False

    async def _take(self, boot: Boot, wish: Wish) -> None:
        """It goes on either way, and who asked for it is told. Given up when its end is asked for, or nobody waits."""
        handle = boot.handle
        assert wish.into is not None, "nothing else is taken"
        wish.begun, taking = True, Taking(boot, wish.into, self.starter.agent_timeout_s)
        failure: errors.CasemateError | None = given_up(handle) if handle.stopping else None
        try:
            with anyio.fail_after(LIMIT_S):
                async with anyio.create_task_group() as race:
                    race.start_soon(_cancel_when, handle._stop, race.cancel_scope)
                    race.start_soon(_cancel_when, wish.unwanted, race.cancel_scope)
                    await handle.parking.wake()
                    async with carried_out(taking_plan(), taking, self.reach):
                        pass
                    wish.taken = taking.taken()
                    race.cancel_scope.cancel()
        except TimeoutError:
            failure = errors.HostError(
                f"sandbox {boot.id} could not be copied within {LIMIT_S:g} s", hint="see casemate doctor"
            )
        except (errors.CasemateError, BaseExceptionGroup) as error:
            failure = ours(error)
            if failure is None:
                raise
        finally:
            handle.forget_wish(wish)
            if wish.taken is None:
                wish.refuse(failure or errors.StateConflict(f"sandbox {boot.id} ended before it was copied"))
            else:
                wish.grant()
        if isinstance(failure, errors.ProtocolViolation):
            handle.ask_stop(Reason.PROTOCOL_VIOLATION, failure.message)

    # ------------------------------------------------------------------------------ while it is suspended

    async def _rest_and_resume(self, boot: Boot) -> None:
        """One machine after another, from the disk, until its end, or until its daemon's."""
        while True:
            await self._put_to_rest(boot)
            wish = await self._until_resumed(boot)
            if wish is None:
                await self._leave_rest(boot)
                return
            if await self._resumed(boot, wish) and not boot.sealed:
                return

    async def _put_to_rest(self, boot: Boot) -> None:
        """Its machine is gone: what it had in memory is given back, and that it is suspended is on record."""
        saving, boot.saving = boot.saving, None
        if saving is None:  # it was suspended before, and a resume has failed or not been asked for yet
            return
        handle, facts = boot.handle, saving.final_facts()
        boot.reservation.give_back_memory()
        try:
            detail = {"asked_by": saving.wish.actor, "stored_bytes": facts.stored_bytes}
            changes: dict[str, Any] = {"pid": None, "suspended": facts}
            await self.records.edge(handle, Action.SUSPENDED, EventKind.SANDBOX_SUSPENDED, detail, **changes)
        except (errors.HostError, errors.CapacityError) as error:  # the folder tells it all the same
            log.error("a suspend could not be recorded", sandbox=boot.id, error=str(error))
        handle.forget_wish(saving.wish)
        saving.wish.grant()

    async def _until_resumed(self, boot: Boot) -> Wish | None:
        """Who wants it back; None when its end is wanted."""
        handle, wishes = boot.handle, list[Wish]()

        async def until_held() -> None:
            """A call that had reached it before it was suspended, and goes on now."""
            while boot._link is not None:
                await boot.link.until_held()
                if handle.info.auto_resume:
                    wishes.append(Wish(Action.RESUME, handle.actor))
                    race.cancel_scope.cancel()
                    return
                boot.link.turn_away(errors.StateConflict(f"sandbox {boot.id} is suspended", hint="resume it first"))

        async def until_wished() -> None:
            while True:
                wish = await handle.wished()
                if wish.action is Action.RESUME:
                    wishes.append(wish)
                    break
                handle.forget_wish(wish)
                if wish.action is Action.SUSPEND:
                    wish.grant()
                else:  # it comes again, when it has had it resumed
                    wish.refuse(errors.StateConflict(f"sandbox {boot.id} was suspended before it was copied"))
            race.cancel_scope.cancel()

        async def until_stopped() -> None:
            await handle._stop.wait()
            race.cancel_scope.cancel()

        async with anyio.create_task_group() as race:
            race.start_soon(until_wished)
            race.start_soon(until_held)
            race.start_soon(until_stopped)
            race.start_soon(_until_too_old, handle)
        return wishes[0] if wishes and not handle._stop.is_set() else None

    async def _leave_rest(self, boot: Boot) -> None:
        """The daemon's end leaves it as it is; any other end is its own."""
        if boot._link is not None:
            boot.link.close()
        boot.kept = boot.handle._why is not None and boot.handle._why.code == Reason.DAEMON_STOPPED
        if not boot.kept:
            boot.sealed = False
            await self.starter.terminate(boot)

    async def _resumed(self, boot: Boot, wish: Wish) -> bool:
        """Run it again. False: it could not be, is suspended as before, and who asked for it is told why."""
        handle = boot.handle
        plan = self.resumer.cold_plan() if wish.cold else self.resumer.resume_plan()
        try:
            async with carried_out(plan, boot, self.reach):
                handle.forget_wish(wish)
                wish.grant()
                boot.failure = await self._watched(boot)
        except (Exception, BaseExceptionGroup) as error:
            failure = ours(error)
            if handle.info.state is not State.SUSPENDED or (failure is None and not isinstance(error, Exception)):
                raise
            failure = failure or fault_of_ours(boot.id, error)
            handle.forget_wish(wish)
            wish.refuse(failure)
            if boot._link is not None:
                boot.link.turn_away(failure)  # a call that was held: to try again for it would be to try for ever
            return False
        return True


@contextmanager
def _kept_if_sealed(boot: Boot) -> Iterator[None]:
    """Whatever goes wrong in the block: what is on the disk then is all there is of it."""
    try:
        yield
    except BaseException:
        boot.kept = boot.kept or boot.sealed
        raise


async def _cancel_when(event: asyncio.Event, scope: anyio.CancelScope) -> None:
    await event.wait()
    scope.cancel()


async def _until_too_old(handle: Handle) -> None:
    if handle.spec.max_duration_s is None:
        await anyio.sleep_forever()
    while not (why := handle.too_old()):
        await anyio.sleep(WATCH_EVERY_S)
    handle.ask_stop(Reason(why.code), why.message)


async def _give_up_boot(handle: Handle, scope: anyio.CancelScope) -> None:
    """Its end was asked for before it ran: nobody waits for a boot that is not wanted."""
    await handle._stop.wait()
    if handle.info.state in (State.PENDING, State.READY):
        scope.cancel()
