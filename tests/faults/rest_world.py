"""What tests of suspend and resume stand on: the plans' steps, a daemon that stops at them, a follower."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

from fault_world import until

from casemate.errors import CasemateError
from casemate.sandbox import Resumer, Starter, Suspender
from casemate.sdk import Client, Sandbox

NOTHING = object()
STARTER = Starter(NOTHING, NOTHING, NOTHING, 1.0)  # type: ignore[arg-type]
SUSPEND = [step.name for step in Suspender(NOTHING, NOTHING).plan()]  # type: ignore[arg-type]
RESUME = [step.name for step in Resumer(STARTER, NOTHING, NOTHING).resume_plan()]  # type: ignore[arg-type]
COUNT = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.05; done"
Act = Callable[[], object]


class Stepper:
    """Continues a daemon each time that it has stopped itself; before that, at the *n*-th step, does harm."""

    def __init__(self, pid: int) -> None:
        """Until the daemon's end: it may stop itself then, too."""
        self._pid = pid
        self.stops = 0
        self.at = -1
        self.harm: Act = lambda: None
        threading.Thread(target=self._run, daemon=True).start()

    def arm(self, at: int, harm: Act) -> None:
        self.stops, self.at, self.harm = 0, at, harm

    def _run(self) -> None:
        while (state := _state(self._pid)) not in ("Z", "X"):
            if state == "T":
                try:
                    if self.stops == self.at:
                        self.harm()
                finally:
                    self.stops += 1
                    os.kill(self._pid, signal.SIGCONT)  # it runs when this returns, and may soon stop again
            time.sleep(0.001)


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "X"


class Follower:
    """One who follows a counting program, over a connection of its own."""

    def __init__(self, url: str, sandbox_id: str) -> None:
        self.text = bytearray()
        self.exec_id = ""
        self.failure: CasemateError | None = None
        self._thread = threading.Thread(target=self._follow, args=(url, sandbox_id))
        self._thread.start()
        until(lambda: self.lines, "it counts")

    def _follow(self, url: str, sandbox_id: str) -> None:
        try:
            with (
                Client(url) as client,
                Sandbox.connect(sandbox_id, client=client).commands.start(["sh", "-c", COUNT]) as running,
            ):
                self.exec_id = running.exec_id
                for piece in running.output():
                    self.text += piece.data
        except CasemateError as error:
            self.failure = error

    @property
    def lines(self) -> list[bytes]:
        return bytes(self.text).split(b"\n")[:-1]

    def goes_on(self) -> None:
        was = len(self.lines)
        until(lambda: len(self.lines) > was or self.failure, "the follower goes on")
        assert self.failure is None, self.failure
        assert self.lines == [b"%d" % n for n in range(1, len(self.lines) + 1)]

    def goes_on_or_is_taken_up(self, sandbox: Sandbox) -> None:
        """It was told that its stream broke, or the stream's end was noticed too late to matter."""
        was = len(self.lines)
        until(lambda: len(self.lines) > was or self.failure, "the follower goes on, or is told")
        if self.failure is not None:
            with sandbox.commands.attach(self.exec_id, stdout_offset=len(self.text)) as again:
                self.text += next(iter(again.output())).data
        assert self.lines == [b"%d" % n for n in range(1, len(self.lines) + 1)]

    def wait_end(self) -> CasemateError | None:
        self._thread.join(20)
        assert not self._thread.is_alive()
        return self.failure
