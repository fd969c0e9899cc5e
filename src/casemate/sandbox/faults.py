"""For tests only: a daemon that kills itself at a named step. Nothing happens unless ``CASEMATE_FAULT`` is set.

``kill:STEP`` on entering it, ``kill:STEP:done`` when it is done, ``kill:STEP:MS`` so many milliseconds after
entering it. The daemon's composition reads it once; nothing else does.
"""

from __future__ import annotations

import os
import re
import signal
import threading

from casemate.errors import InvalidSpec
from casemate.sandbox.plan import Moment, Reach, pass_by

_FAULT = re.compile(r"kill:([a-z-]+)(?::(done|\d{1,5}))?")


def parse_fault(text: str | None) -> Reach:
    """Raises InvalidSpec for anything but such a fault."""
    if not text:
        return pass_by
    if not (found := _FAULT.fullmatch(text)):
        raise InvalidSpec(f"CASEMATE_FAULT is {text!r}", hint="kill:STEP, kill:STEP:done or kill:STEP:MS")
    step, when = found.groups()

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


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
