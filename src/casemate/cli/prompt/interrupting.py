"""Ctrl-C while a cell runs: it reaches the cell, and only who insists is let go at once."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, Any

from casemate.errors import CasemateError

if TYPE_CHECKING:
    from casemate.sdk import Sandbox


@dataclass(slots=True)
class Pressed:
    """How often it was."""

    count: int = 0


@contextlib.contextmanager
def interrupts(sandbox: Sandbox, context: str) -> Iterator[Pressed]:
    """The first interrupts what runs in *context*; the second, for code that does not listen, ends its interpreter;
    the third is a KeyboardInterrupt.
    """
    acts: Iterator[Callable[[str], Any]] = iter((sandbox.contexts.interrupt, sandbox.contexts.restart))
    pressed = Pressed()
    before = signal.getsignal(signal.SIGINT)

    def on_interrupt(number: int, frame: FrameType | None) -> None:
        pressed.count += 1
        act = next(acts, None)
        if act is None:
            raise KeyboardInterrupt
        threading.Thread(target=quietly, args=(act,), daemon=True).start()

    def quietly(act: Callable[[str], Any]) -> None:
        with contextlib.suppress(CasemateError):  # it has ended meanwhile, or its end says what is wrong
            act(context)

    signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)
