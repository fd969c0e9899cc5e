"""File locks between processes and threads, with a deadline. The kernel drops them when their holder dies."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from casemate.errors import HostError

POLL_S = 0.1


@contextmanager
def held(
    path: Path, *, timeout_s: float, shared: bool = False, waiting: Callable[[], None] | None = None
) -> Iterator[None]:
    """Hold the lock file *path* (made when absent) for the block; *waiting* is called once if that takes.

    Raises HostError when somebody else holds it for longer than *timeout_s*.
    """
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    deadline = time.monotonic() + timeout_s
    with path.open("ab") as lock:
        while not _try(lock.fileno(), kind):
            if waiting:
                waiting()
                waiting = None
            if time.monotonic() > deadline:
                raise HostError(
                    f"somebody else has held {path} for {timeout_s:g} s",
                    hint="see who with: fuser -v " + str(path),
                )
            time.sleep(POLL_S)
        yield


def _try(fd: int, kind: int) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
