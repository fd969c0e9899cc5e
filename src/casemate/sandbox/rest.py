"""When a sandbox rests: parked when it has nothing to do, idle after a longer while of that.

    in use: a call under way, bytes, a keep-alive    nobody asks the guest
    not in use for park_after_s                      its agent is asked what runs, and when it has to be awake
    nothing runs, no timer due within near_s         parked, until a call, or EARLY_S before its first timer
    nothing has run for idle_timeout_s               killed or suspended, as on_idle says

Asking costs the guest some milliseconds. It is asked when half of park_after_s has passed without use, when all of
it has, and then ever more rarely. What it says is believed: a guest that lies keeps itself awake or sleeps too long.
"""

from __future__ import annotations

import math
import time

import anyio
import structlog

from casemate import errors
from casemate.sandbox.activity import Activity, ask
from casemate.sandbox.handle import Handle
from casemate.sandbox.states import Reason

log = structlog.get_logger()
NEAR_S = 60.0
EARLY_S = 1.0
AFTER_S = 0.5  # a timer that is due has fired by then
BUSY_SHARE = 0.02  # of one processor: when the user's programs take more, they work
SLACK_MS = 15  # beside that: two looks may be close to each other, and the guest's account of CPU time is coarse
RAREST_S = 60.0  # between two looks
AGAIN_S = 60.0  # after a suspend that was refused
UNKNOWN = Activity(execs_running=0, terminals_running=0, cells_running=0, user_cpu_ms=0, next_timer_ms=0)
"""What an agent is taken to say that is too old to be asked: it is never parked."""


class Rest:
    """Of one sandbox, in one machine after another. Times are of the monotonic clock."""

    def __init__(self, handle: Handle, *, near_s: float = NEAR_S) -> None:
        spec = handle.spec
        idle_s = spec.idle_timeout_s if spec.on_idle != "keep" else None
        self._handle = handle
        self._near_s = near_s
        self._idle_s = math.inf if idle_s is None else idle_s
        self._park_s = math.inf if spec.park_after_s is None else spec.park_after_s
        self._pace_s = min(self._idle_s, self._park_s, RAREST_S)
        self._since = -math.inf  # when it was used last
        self._worked_at = -math.inf  # when it was last seen to work, or first seen not to work any more
        self._worked = False
        self._next_at = 0.0  # the next look, or when a parked one has to be awake
        self._step = 0  # looks since its last use
        self._cpu: tuple[float, int] | None = None  # of the last look: when, and what the user's programs had used
        self._due_at = math.inf  # the first timer of a parked one
        self._refused_at = -math.inf

    async def run(self) -> None:
        """For as long as it runs; returns when its end was asked for. Cancelled when it is being suspended."""
        if math.isinf(self._idle_s) and math.isinf(self._park_s):
            await anyio.sleep_forever()
        while not self._handle.stopping:
            self._begin_anew_if_used()
            left_s = min(self._next_at, self._idle_at) - time.monotonic()
            if left_s > 0:
                await self._wait(left_s)
            elif not self._handle.parked:
                await self._look()
            elif time.monotonic() >= self._idle_at:
                await self._idled()
            else:
                await self._wake_for_timer()

    @property
    def _idle_at(self) -> float:
        """When it will have been idle for long enough, unless it works until then."""
        return max(self._since, self._worked_at, self._refused_at + AGAIN_S - self._idle_s) + self._idle_s

    def _begin_anew_if_used(self) -> None:
        used_at = self._handle.usage.used_at
        if used_at > self._since:
            self._since, self._step = used_at, 0
            self._next_at = used_at + self._pace_s / 2

    async def _wait(self, left_s: float) -> None:
        if self._handle.parked:
            with anyio.move_on_after(None if math.isinf(left_s) else left_s):
                await self._handle.parking.woken.wait()
        else:
            await anyio.sleep(min(left_s, self._pace_s))  # no longer: it may be used meanwhile

    async def _look(self) -> None:
        activity = await self._ask()
        now = time.monotonic()
        works = activity is None or activity.is_work or self._is_computing(activity, now)
        if works or self._worked:
            self._worked_at = now
        self._worked = works
        self._cpu = (now, activity.user_cpu_ms) if activity is not None else None
        self._step += 1
        self._next_at = self._after_look(activity, now)
        if works or activity is None or self._step == 1 or self._handle.usage.used_at > self._since:
            return
        if now >= self._idle_at:
            await self._idled()
        elif now - self._since >= self._park_s:
            await self._park(activity, now)

    def _is_computing(self, activity: Activity, now: float) -> bool:
        """The first look after a use has nothing to compare with: what the use took is no work that goes on."""
        if self._step == 0 or self._cpu is None:
            return False
        at, cpu_ms = self._cpu
        return activity.user_cpu_ms - cpu_ms > (now - at) * 1000 * BUSY_SHARE + SLACK_MS

    def _after_look(self, activity: Activity | None, now: float) -> float:
        if self._step == 1:
            return max(self._since + self._pace_s, now)
        pause_s: float = min(
            self._pace_s * 2.0 ** min(self._step - 2, 20), max(self._idle_s / 4, self._pace_s), RAREST_S
        )
        due_ms = activity.next_timer_ms if activity is not None else None
        if due_ms is not None and due_ms <= self._near_s * 1000:
            pause_s = max(pause_s, due_ms / 1000 + AFTER_S)
        return now + pause_s

    async def _ask(self) -> Activity | None:
        """None where it does not answer: it may have too much to do for that, and its link sees to it if it is dead."""
        try:
            return await ask(self._handle.link)
        except errors.ProtocolViolation as error:
            self._handle.ask_stop(Reason.PROTOCOL_VIOLATION, error.message)
            return None
        except (errors.NotSupported, errors.InvalidSpec):
            return UNKNOWN
        except (errors.GuestError, errors.VmmError, errors.RequestError) as error:  # what it denies with is its choice
            log.debug("a guest did not say what it does", sandbox=self._handle.info.id, error=str(error))
            return None

    async def _park(self, activity: Activity, now: float) -> None:
        due_s = math.inf if activity.next_timer_ms is None else activity.next_timer_ms / 1000
        if due_s <= self._near_s:
            return

        def unused() -> bool:
            return self._handle.usage.used_at <= self._since and not self._handle.usage.connections

        try:
            if not await self._handle.park(unused):
                return
        except (errors.HostError, errors.VmmError) as error:
            log.warning("a sandbox could not be parked", sandbox=self._handle.info.id, error=str(error))
            return
        self._due_at = now + due_s
        self._next_at = self._due_at - EARLY_S

    async def _wake_for_timer(self) -> None:
        await self._handle.parking.wake()
        now = time.monotonic()
        if self._cpu is not None:
            self._cpu = (now, self._cpu[1])  # it has used none since it was parked
        self._next_at = max(self._due_at, now) + AFTER_S

    async def _idled(self) -> None:
        handle, what = self._handle, f"without work for its idle_timeout_s of {self._idle_s:g} s"
        if handle.spec.on_idle == "kill":
            handle.ask_stop(Reason.IDLE, what)
            return
        self._refused_at = time.monotonic()  # if it is not: when it is suspended, nobody comes back here
        try:
            await handle.suspend("idle", if_unused=True)
        except errors.CasemateError as error:
            log.warning("an idle sandbox could not be suspended", sandbox=handle.info.id, error=str(error))
