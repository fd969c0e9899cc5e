"""The one sandbox of a kernel: made beforehand, another one where it has died, gone with the kernel."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TypeVar

from casemate.errors import CasemateError
from casemate.sdk import Sandbox

T = TypeVar("T")
Tell = Callable[[str], object]


@dataclass(frozen=True, slots=True)
class Wish:
    image: str = "python"
    language: str = "python"
    memory_mib: int | None = None


@dataclass(frozen=True, slots=True)
class Ready:
    sandbox: Sandbox
    context: str


def in_daemon_thread(act: Callable[[], T]) -> Future[T]:
    """A thread that does not keep the process from ending, as those of an executor would."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(act())
        except BaseException as error:
            future.set_exception(error)
            if not isinstance(error, Exception):
                raise

    threading.Thread(target=run, daemon=True).start()
    return future


class Held:
    """Safe for threads. After ``close`` there is none, and none is made."""

    def __init__(self, wish: Wish) -> None:
        self._wish = wish
        self._lock = threading.Lock()
        self._coming: Future[Ready] | None = None
        self._is_closed = False
        self.tell: Tell = lambda text: None  # of a snapshot that is built first

    def coming(self) -> Future[Ready]:
        """The one there is, else one that is begun now."""
        with self._lock:
            if self._coming is None:
                self._coming = in_daemon_thread(self._make)
            return self._coming

    def now(self) -> Ready | None:
        """The one there is."""
        with self._lock:
            coming = self._coming
        if coming is None or not coming.done() or coming.exception() is not None:
            return None
        return coming.result()

    def let_go(self) -> None:
        """The next who asks gets another one. Kills what is left of this one."""
        with self._lock:
            coming, self._coming = self._coming, None
        if coming is not None:
            coming.add_done_callback(_kill)

    def close(self) -> None:
        """Raises CasemateError where it cannot be killed; then the daemon does so when this process has gone."""
        with self._lock:
            self._is_closed = True
            coming, self._coming = self._coming, None
        if coming is None:
            return
        if coming.done() and coming.exception() is None:
            coming.result().sandbox.kill()
        else:
            coming.add_done_callback(_kill)

    def _make(self) -> Ready:
        wish = self._wish
        sandbox = Sandbox.create(
            wish.image,
            memory_mib=wish.memory_mib,
            idle_timeout_s=None,  # it lives as long as the kernel
            attached=True,
            progress=lambda step, message, fraction: self.tell(message),
        )
        try:
            if self._is_closed:
                raise CasemateError("the kernel has been shut down")
            python = wish.language == "python"
            context = "default" if python else sandbox.contexts.create(wish.language).context_id
        except BaseException:
            sandbox.kill()
            raise
        return Ready(sandbox, context)


def _kill(coming: Future[Ready]) -> None:
    if coming.exception() is None:
        in_daemon_thread(coming.result().sandbox.kill)
