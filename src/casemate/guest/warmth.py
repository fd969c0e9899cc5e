"""What waits warm in the snapshot: the spawner's children and, if the image has a Python, the zygote's."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

from casemate.guest.cgroups import Groups
from casemate.guest.contexts import Contexts
from casemate.guest.exec_table import ExecTable
from casemate.guest.reactor import Reactor
from casemate.guest.reaper import Reaper
from casemate.guest.rehearsal import PROGRAMS, Rehearsal
from casemate.guest.spawner import Spawner
from casemate.guest.surroundings import Surroundings
from casemate.guest.zygote import Zygote

RUNTIME = "/run/casemate/agent/runtime"
PYTHON = "/usr/bin/python3"
RESTARTS = 5
RESTART_AFTER_S = 1.0

Done = Callable[[dict[str, Any]], None]
Failed = Callable[[str], None]


class Warmth:
    """Owns the zygote; starts it again when it dies, RESTARTS times. Without it scripts run cold."""

    def __init__(
        self,
        reactor: Reactor,
        reaper: Reaper,
        groups: Groups,
        execs: ExecTable,
        spawner: Spawner,
        surroundings: Surroundings,
    ) -> None:
        self._reactor, self._reaper, self._groups, self._execs = reactor, reaper, groups, execs
        self._spawner, self._surroundings = spawner, surroundings
        self._zygote: Zygote | None = None
        self._restarts = RESTARTS
        self.contexts: Contexts | None = None

    def prepare(self, zygote: bool, done: Done, failed: Failed) -> None:
        """Make everything wait that will: *done* or *failed* (with a reason) is called then."""

        def rehearse(about: dict[str, Any]) -> None:
            self._stage().play(PROGRAMS, lambda: done(about))

        def on_zygote(about: dict[str, Any]) -> None:
            contexts, warm = self.contexts, self._zygote
            assert contexts is not None
            assert warm is not None
            contexts.start_default(
                self._surroundings.job((), {}, None, None),
                lambda: self._stage().await_spares(warm, lambda: rehearse(about)),
            )

        if not zygote:
            self._groups.limit()
            rehearse({"zygote": None})
        elif not os.access(PYTHON, os.X_OK):
            failed(f"the image has no {PYTHON}")
        else:
            self._start(on_zygote, failed)

    def rehearse(self, done: Callable[[], None]) -> None:
        """What a clone's first exec and first script would be the first to need; no trace of it but warmth."""

        def clean() -> None:
            self._groups.sweep()
            done()

        self._stage().play(PROGRAMS[:1], clean, self._zygote)

    def restock(self, done: Callable[[], None]) -> None:
        """Have the spares that were used up made now."""
        stage = self._stage()
        if self._zygote is None:
            stage.play((), done)
        else:
            stage.await_spares(self._zygote, lambda: stage.play((), done))

    def _stage(self) -> Rehearsal:
        return Rehearsal(self._reactor, self._spawner, self._surroundings)

    def _start(self, done: Done, failed: Failed) -> None:
        zygote = self._zygote
        if zygote is None:
            zygote = self._zygote = Zygote(
                self._reactor, self._reaper, self._groups.new, python=PYTHON, runtime=RUNTIME
            )

        def on_ready() -> None:
            self._execs.zygote = zygote
            if self.contexts is None:
                self.contexts = Contexts(self._reactor, zygote)
            self._groups.limit()
            done({"zygote": zygote.about})

        def on_failed(reason: str) -> None:
            print(reason, file=sys.stderr)
            self._execs.zygote = None
            failed(reason)
            if self._restarts and self.contexts is not None:
                self._restarts -= 1
                self._reactor.call_later(RESTART_AFTER_S, lambda: self._start(_ignore, _ignore))

        zygote.start(on_ready, on_failed)


def _ignore(_told: object) -> None:
    """Nobody waits for a restarted zygote; its reasons are on the console."""
