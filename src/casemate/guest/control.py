"""Channels of kind control: prepare, warm, restock, sync, quiesce, thaw, stats, activity."""

from __future__ import annotations

import os
from time import monotonic
from typing import Any

from casemate.errors import CasemateError, GuestError, InvalidSpec, StateConflict
from casemate.guest.conversation import Conversation, text
from casemate.guest.reactor import Reactor
from casemate.guest.timer_list import others_run

PREPARE_LIMIT_S = 170.0
WARM_LIMIT_S = 30.0
FREEZE_LIMIT_S = 5.0
_LOOK_AGAIN_S = 0.001  # the parent of a fork stands still meanwhile


class ControlChannel(Conversation):
    """One act on the guest as a whole; accepted when it is done."""

    _answered = _quiesces = False

    def begin(self, params: dict[str, Any]) -> None:
        op = text(params, "op")
        if op == "prepare":
            self._reactor.call_later(PREPARE_LIMIT_S, lambda: self._fail("what has to wait warm is not ready in time"))
            self.server.prepare(bool(params.get("zygote")), self._done, self._fail)
        elif op == "warm":
            self._reactor.call_later(WARM_LIMIT_S, lambda: self._fail("what has to wait warm is not ready in time"))
            self.server.rehearse(lambda: self._done({}))
        elif op == "restock":
            self._reactor.call_later(WARM_LIMIT_S, lambda: self._fail("the spares are not ready in time"))
            self.server.restock(lambda: self._done({}))
        elif op == "sync":
            os.sync()
            self._done({})
        elif op == "quiesce":
            self._quiesces = True
            self.server.groups.freeze(True)
            self._await_frozen(monotonic() + FREEZE_LIMIT_S)
        elif op == "thaw":
            self.server.groups.freeze(False)
            self._done({})
        elif op == "stats":
            self._done(self._stats())
        elif op == "activity":
            self._done(self._activity())
        else:
            raise InvalidSpec(f"control has no op {op!r}")

    @property
    def _reactor(self) -> Reactor:
        return self.server.reactor

    def on_closed(self, lost: bool) -> None:
        if self._quiesces and not self._answered:
            self.server.groups.freeze(False)  # nobody is told that they are frozen, so nobody would thaw them
        self._answered = True

    def _await_frozen(self, until: float) -> None:
        if self._answered:
            return
        if self.server.groups.is_frozen():
            self._done({})
        elif monotonic() > until:
            held = self.server.groups.find_held() or "none that can be named"
            self.server.groups.freeze(False)
            reason = f"the kernel holds a process that could not be stopped within {FREEZE_LIMIT_S:g} s: {held}"
            self._refuse(StateConflict(reason, hint="let it finish what it waits for, or kill it"))
        else:
            self._reactor.call_later(_LOOK_AGAIN_S, lambda: self._await_frozen(until))

    def _stats(self) -> dict[str, Any]:
        execs = self.server.execs.all()
        with open("/proc/meminfo") as file:
            memory = {name: int(rest.split()[0]) << 10 for name, _, rest in (line.partition(":") for line in file)}
        return {
            "user": self.server.groups.stats(),
            "memory_total_bytes": memory["MemTotal"],
            "memory_available_bytes": memory["MemAvailable"],
            "execs_running": sum(program.end is None for program in execs),
            "execs": len(execs),
        }

    def _activity(self) -> dict[str, Any]:
        """What work there is. Background processes of ended execs show in the CPU time only.

        The time-out of an exec is due like a timer of its own. What runs just now may be about to set one: then the
        next is not known.
        """
        server, now = self.server, monotonic()
        running = [program for program in server.execs.all() if program.end is None]
        time_outs = [max(0, round((program.due_at - now) * 1000)) for program in running if program.due_at is not None]
        timer_ms = 0 if others_run() else server.timers.next_ms()
        terminals = sum(program.terminal for program in running)
        return {
            "execs_running": len(running) - terminals,
            "terminals_running": terminals,
            "cells_running": server.contexts.cells if server.contexts is not None else 0,
            "user_cpu_ms": server.groups.cpu_ms(),
            "next_timer_ms": min([*time_outs, *([] if timer_ms is None else [timer_ms])], default=None),
        }

    def _done(self, body: dict[str, Any]) -> None:
        if not self._answered:
            self._answered = True
            self.accept(body)
            self.finish()

    def _fail(self, reason: str) -> None:
        self._refuse(GuestError(reason))

    def _refuse(self, error: CasemateError) -> None:
        if not self._answered:
            self._answered = True
            self.deny(error)
