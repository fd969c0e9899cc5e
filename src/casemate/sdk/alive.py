"""Saying again and again that we live, from a thread: in both SDKs, as a program may hold its event loop up."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def repeating(every_s: float, act: Callable[[], None]) -> Iterator[None]:
    """Do *act*, which raises nothing, again and again while the block runs, the first time after *every_s*.

    One that is under way when the block ends is not waited for.
    """
    over = threading.Event()

    def repeat() -> None:
        while not over.wait(every_s):
            act()

    threading.Thread(target=repeat, daemon=True).start()
    try:
        yield
    finally:
        over.set()
