"""For tests only: a daemon that kills or stops itself at a named step. Without ``CASEMATE_FAULT`` nothing happens.

``kill:STEP`` on entering it, ``kill:STEP:done`` when it is done, ``kill:STEP:MS`` so many milliseconds after
entering it. ``stop:STEP`` and ``stop:STEP:done`` the same by SIGSTOP, so that a test can do harm at that very moment
and continue it; a STEP that ends with ``*`` is every step that begins so. Read once, by the daemon's composition.
"""

from __future__ import annotations

import os
import re
import signal
import threading

from casemate.errors import InvalidSpec
from casemate.sandbox.plan import Moment, Reach, pass_by

_FAULT = re.compile(r"(?:kill:([a-z-]+)(?::(done|\d{1,5}))?|stop:([a-z-]+\*?)(?::(done))?)")


def parse_fault(text: str | None) -> Reach:
    """Raises InvalidSpec for anything but such a fault."""
    if not text:
        return pass_by
    if not (found := _FAULT.fullmatch(text)):
        raise InvalidSpec(f"CASEMATE_FAULT is {text!r}", hint="kill:STEP[:done], kill:STEP:MS or stop:STEP[:done]")
    if (stop_at := found[3]) is not None:
        return _stopping(stop_at, "done" if found[4] else "enter")
    step, when = found[1], found[2]

    def reach(name: str, moment: Moment) -> None:
        if name != step or moment != ("done" if when == "done" else "enter"):
            return
        if when and when != "done":
            timer = threading.Timer(int(when) / 1000, _die)
            timer.daemon = True
            timer.start()
        else:
            _die()

    return reach


def _stopping(wanted: str, when: Moment) -> Reach:
    def reach(name: str, moment: Moment) -> None:
        if moment == when and (name == wanted or (wanted.endswith("*") and name.startswith(wanted[:-1]))):
            os.kill(os.getpid(), signal.SIGSTOP)

    return reach


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
