"""Channels of kind exec: start, attach, signal, list, remove."""

from __future__ import annotations

import signal
from dataclasses import replace
from typing import Any

from casemate import wire
from casemate.errors import ExecRefused, InvalidSpec, RequestError
from casemate.guest.conversation import (
    Conversation,
    environment,
    optional_text,
    seconds,
    text,
    texts,
    whole,
)  # fmt: skip
from casemate.guest.execs import STDERR, STDOUT, Exec
from casemate.guest.terminals import resize, window_of

SIGNALS = frozenset({"HUP", "INT", "QUIT", "KILL", "USR1", "USR2", "TERM", "CONT", "STOP", "TSTP", "WINCH"})
_LIST_BYTES = 50_000
_ENTRY_BYTES = 250
_JSON_GROWTH = 12  # a character beyond the first 65,536 is written as twelve


class ExecChannel(Conversation):
    """One look at one exec, or one act on it."""

    program: Exec | None = None
    _detached = False
    _ended = False

    def begin(self, params: dict[str, Any]) -> None:
        op = text(params, "op")
        if op == "start":
            self._start(params)
        elif op == "attach":
            self._attach(params)
        elif op in ("signal", "list", "remove"):
            self._act(op, params)
            self.finish()
        else:
            raise InvalidSpec(f"exec has no op {op!r}")

    # ------------------------------------------------------------------ opening

    def _start(self, params: dict[str, Any]) -> None:
        argv, exec_id = texts(params, "argv"), text(params, "exec_id")
        if not argv or not argv[0]:
            raise InvalidSpec("argv is empty")
        script, cold = bool(params.get("script")), bool(params.get("cold"))
        timeout_s = seconds(params, "timeout_s")
        pty = params.get("pty") or {}
        if not isinstance(pty, dict):
            raise InvalidSpec("pty is not an object")
        window = window_of(pty) if pty else None
        job = self.server.surroundings.job(
            ["python3", *argv] if script and (cold or pty) else argv,
            ({"TERM": text(pty, "term", "dumb")} if pty else {}) | environment(params),
            optional_text(params, "cwd"),
            optional_text(params, "user"),
        )
        if pty:
            job = replace(job, tty=True)
        program = self.server.execs.start(
            exec_id,
            job,
            warm=script and not cold and window is None,
            stdin=bool(params.get("stdin")),
            window=window,
            started=self._on_started,
            refused=self._on_refused,
        )
        program.timeout_s = timeout_s
        program.on_disconnect = "keep" if params.get("on_disconnect") == "keep" else "kill"
        self.program = program
        self.cursors = {STDOUT: 0, STDERR: 0}
        program.attach(self)

    def _on_started(self) -> None:
        program = self.program
        assert program is not None
        self.accept({"exec_id": program.exec_id, "pid": program.pid, "stdout_offset": 0, "stderr_offset": 0})

    def _on_refused(self, error: ExecRefused) -> None:
        self._detached = True
        self.deny(error)

    def _attach(self, params: dict[str, Any]) -> None:
        program = self.server.execs.find(text(params, "exec_id"))
        cursors = {}
        for number, name in ((STDOUT, "stdout_offset"), (STDERR, "stderr_offset")):
            asked, ring = whole(params, name, 0), program.ring(number)
            if asked > ring.end:
                error = RequestError(f"{name} {asked} is past the end, {ring.end}", hint="ask from 0")
                self.deny(error, "bad-offset")
                return
            cursors[number] = max(asked, ring.start)
        self.cursors = cursors
        self.program = program
        self.accept(
            {
                "exec_id": program.exec_id,
                "pid": program.pid,
                "stdout_offset": cursors[STDOUT],
                "stderr_offset": cursors[STDERR],
            }
        )
        program.attach(self)
        self.on_progress()

    def _act(self, op: str, params: dict[str, Any]) -> None:
        execs = self.server.execs
        if op == "list":
            self.accept({"execs": newest([program.listed() for program in execs.all()])})
        elif op == "remove":
            execs.remove(text(params, "exec_id"))
            self.accept()
        else:
            execs.find(text(params, "exec_id")).signal(_number(text(params, "signal")))
            self.accept()

    # ----------------------------------------------------------------- attached

    def on_progress(self) -> None:
        """Send what the window takes; once all is sent and the exec has settled, its end."""
        program = self.program
        if program is None or self._ended or self._detached or not program.pid:
            return
        behind = False
        for number, cursor in self.cursors.items():
            ring = program.ring(number)
            while cursor < ring.end:
                piece = ring.piece_at(cursor)
                count = self.connection.send(self.number, number, piece)
                cursor += count
                self.cursors[number] = cursor
                if count < len(piece):
                    behind = True
                    break
        if program.settled and not behind and program.end is not None:
            self._ended = True
            program.detach(self)
            self.connection.send_message(self.number, program.end)
            self.finish()

    def on_writable(self) -> None:
        self.on_progress()
        if self.program is not None and not self._ended:
            for number in self.cursors:
                self.program.taken(number)

    def on_data(self, event: wire.Data) -> None:
        program = self.program
        if program is None or program.stdin is None or self._detached:
            self.connection.consumed(self.number, event.size)
        else:
            program.stdin.feed(event.data, lambda: self.connection.consumed(self.number, event.size))

    def on_message(self, body: dict[str, Any]) -> None:
        program = self.program
        if program is None:
            return
        if body.get("op") == "stdin-eof" and program.stdin is not None:
            program.stdin.end()
        elif body.get("op") == "signal" and program.end is None and program.pid:
            program.signal(_number(text(body, "signal")))
        elif body.get("op") == "resize" and program.master >= 0:
            resize(program.master, window_of(body))

    def on_finished(self) -> None:
        """Detach: the exec goes on by itself."""
        if self.program is not None and not self._ended:
            self._detached = True
            self.program.detach(self)
            self.finish()

    def on_closed(self, lost: bool) -> None:
        if self.program is not None and not self._ended and not self._detached:
            self._detached = True
            self.program.detach(self)
            if not lost:  # else its host is gone, not its starter's wish: the next one may attach
                self.program.abandon()


def newest(listed: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The last ones, as many as surely fit into one message."""
    room, taken = _LIST_BYTES, 0
    for program in reversed(listed[-100:]):
        room -= _ENTRY_BYTES + _JSON_GROWTH * sum(map(len, program["argv"]))
        if room < 0:
            break
        taken += 1
    return listed[len(listed) - taken :]


def _number(name: str) -> int:
    if name not in SIGNALS:
        raise InvalidSpec(f"signal {name[:40]!r} is not known", hint=f"one of {', '.join(sorted(SIGNALS))}")
    return signal.Signals["SIG" + name].value
