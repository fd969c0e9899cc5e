"""Programs run for the sake of running them, so that a user's first one finds everything at hand.

Before the snapshot is taken: what starting a program reads is then in every clone's page cache. Without it a clone's
first exec fetches the loader, libc and the program from the compressed root disk, which takes longer than all the
rest of it, and the translation of the code that does so stays in its memory.
In a clone that waits for its user: what starts programs, here and in the zygote, is then translated already, and the
pages it writes to are copied.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from casemate.guest.cgroups import Group
from casemate.guest.reactor import Reactor
from casemate.guest.spawner import Launch, Spawner
from casemate.guest.surroundings import Surroundings
from casemate.guest.zygote import Child, Zygote

PROGRAMS = (("/bin/true",), ("/bin/sh", "-c", "/bin/true | /bin/cat"), ("python3", "-c", "pass"))
SCRIPT = ("/dev/null",)
LOOK_AGAIN_S = 0.01


class Rehearsal:
    """Plays once: programs one after the other, as the default user; what an image does not have is passed over."""

    def __init__(self, reactor: Reactor, spawner: Spawner, surroundings: Surroundings) -> None:
        self._reactor, self._spawner, self._surroundings = reactor, spawner, surroundings

    def play(self, programs: Sequence[tuple[str, ...]], done: Callable[[], None], zygote: Zygote | None = None) -> None:
        """First an empty script of *zygote*'s; *done* is called once, when all have ended and every spare waits.

        In this order: an emulated machine's translations of the zygote's code may push out what was there before.
        """
        self._left, self._done = list(programs), done
        self._null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        if zygote is None:
            self._next()
        else:
            self._run_script(zygote)

    def _next(self) -> None:
        if not self._left:
            self.await_spares(self._spawner, self._end)
            return
        group: list[Group] = []
        job = self._surroundings.job(self._left.pop(0), {}, None, None)

        def ended(_status: int) -> None:
            group[0].close()
            self._next()

        stdio = (self._null,) * 3
        self._spawner.launch(
            Launch(job, stdio, lambda _pid, its: group.append(its), lambda _errno, _stage: self._next(), ended)
        )

    def _run_script(self, zygote: Zygote) -> None:
        child: Child | None = None

        def ended() -> None:
            assert child is not None
            child.group.kill()
            child.group.close()
            self.await_spares(zygote, self._next)

        child = zygote.run_script(
            self._surroundings.job(SCRIPT, {}, None, None),
            (self._null,) * 3,
            started=_go_on,
            refused=lambda _name: ended(),
            exited=lambda _status: ended(),
        )
        if child is None:  # none waits just now: then one is on its way, which is as good
            self.await_spares(zygote, self._next)

    def await_spares(self, stock: Spawner | Zygote, then: Callable[[], None]) -> None:
        """Have *stock* filled, then *then*."""
        if stock.is_stocked:
            then()
        else:
            stock.refill()
            self._reactor.call_later(LOOK_AGAIN_S, lambda: self.await_spares(stock, then))

    def _end(self) -> None:
        os.close(self._null)
        self._done()


def _go_on() -> None:
    """It has begun; its end is what we wait for."""
