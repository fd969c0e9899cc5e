"""Do something beside something else. Written twice: a thread here, a task in ``_async``."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from casemate.errors import DaemonUnavailable

T = TypeVar("T")
JOIN_S = 30.0


@contextmanager
def beside(work: Callable[[], None]) -> Iterator[None]:
    """Run *work* in a thread while the block runs. It must end by itself when the block has.

    Raises what *work* or the block raised, the block's first.
    """
    raised: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            raised.append(error)  # raised again in the thread that waits
            if not isinstance(error, Exception):
                raise

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        thread.join(JOIN_S)
    if thread.is_alive():
        raise DaemonUnavailable(f"the daemon did not take a command's input to an end within {JOIN_S:g} s")
    if raised:
        raise raised[0]


def called(call: Callable[[T], object], value: T) -> None:
    """Call it."""
    call(value)


def in_thread(call: Callable[[], T]) -> T:
    """The result of a call that blocks; here that is no matter."""
    return call()
