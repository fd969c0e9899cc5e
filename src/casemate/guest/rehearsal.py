"""Programs run once before the snapshot is taken: what starting one reads is then in every clone's page cache.

Without it a clone's first exec fetches the loader, libc and the program from the compressed root disk, which takes
longer than all the rest of it, and the translation of the code that does so stays in its memory.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from casemate.guest.cgroups import Group
from casemate.guest.reactor import Reactor
from casemate.guest.spawner import Launch, Spawner
from casemate.guest.surroundings import Surroundings

PROGRAMS = (("/bin/true",), ("/bin/sh", "-c", "/bin/true | /bin/cat"), ("python3", "-c", "pass"))
LOOK_AGAIN_S = 0.05


class Rehearsal:
    """Runs PROGRAMS one after the other, as the default user; what an image does not have is passed over."""

    def __init__(
        self, reactor: Reactor, spawner: Spawner, surroundings: Surroundings, done: Callable[[], None]
    ) -> None:
        """*done* is called once, when the last has ended and the spawner's children wait again."""
        self._reactor, self._spawner, self._surroundings, self._done = reactor, spawner, surroundings, done
        self._left = list(PROGRAMS)
        self._group: Group | None = None

    def begin(self) -> None:
        if not self._left:
            self._await_spares()
            return
        job = self._surroundings.job(self._left.pop(0), {}, None, None)
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)

        def started(_pid: int, group: Group) -> None:
            os.close(null)
            self._group = group

        def refused(_errno: int, _stage: int) -> None:
            os.close(null)
            self.begin()

        self._spawner.launch(Launch(job, (null, null, null), started, refused, lambda _status: self._ended()))

    def _ended(self) -> None:
        if self._group is not None:
            self._group.close()
            self._group = None
        self.begin()

    def _await_spares(self) -> None:
        if self._spawner.is_stocked:
            self._done()
        else:
            self._reactor.call_later(LOOK_AGAIN_S, self._await_spares)
