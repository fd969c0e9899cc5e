"""Channels of kind cell: code for the default context, its output, its end."""

from __future__ import annotations

from collections import deque
from typing import Any

from casemate import wire
from casemate.errors import InvalidSpec, NotSupported, StateConflict
from casemate.guest.conversation import Conversation, optional_text, seconds, text
from casemate.guest.interpreter import CODE_LIMIT, Cell


class CellChannel(Conversation):
    """One cell. Collects the code, then carries output; a full window stops the reading of its pipes."""

    def begin(self, params: dict[str, Any]) -> None:
        self._code = bytearray((optional_text(params, "code") or "").encode())
        self._timeout_s = seconds(params, "timeout_s")
        self._job = self.server.surroundings.job((), {}, None, optional_text(params, "user"))
        self._cell: Cell | None = None
        self._unsent: deque[tuple[int, bytes | memoryview]] = deque()
        self._end: dict[str, Any] | None = None
        if text(params, "context", "default") != "default":
            raise NotSupported("there is only the default context", hint="leave context out")
        if self.server.interpreter is None:
            raise NotSupported(
                "this sandbox has no warm Python", hint="its image has no python3, or it was not prepared"
            )
        self.accept()

    def on_data(self, event: wire.Data) -> None:
        self.connection.consumed(self.number, event.size)
        if len(self._code) + event.size > CODE_LIMIT:
            self.reset(InvalidSpec.code, f"code is over {CODE_LIMIT} bytes")
        else:
            self._code += event.data

    def on_finished(self) -> None:
        interpreter = self.server.interpreter
        if interpreter is None:
            self.reset(NotSupported.code, "this sandbox has no warm Python")
            return
        self._cell = interpreter.run(
            bytes(self._code), self._job, timeout_s=self._timeout_s, output=self._on_output, ended=self._on_ended
        )
        self._code.clear()
        if self._cell is None:
            self.reset(StateConflict.code, "too many cells wait already")

    def on_writable(self) -> None:
        if self._flush() and self._cell is not None and self._end is None:
            self._cell.resume()

    def on_closed(self, lost: bool) -> None:
        if self._cell is None or self._end is not None:
            return
        if lost:  # its host is gone, and may have been for long: the cell goes on, its output is nobody's
            self._unsent.clear()
            self._cell.resume()
        else:
            self._cell.cancel()

    def _on_output(self, stream: int, output: bytes) -> None:
        self._unsent.append((stream, output))
        if not self._flush() and self._cell is not None:
            self._cell.pause()

    def _on_ended(self, body: dict[str, Any]) -> None:
        self._end = {"event": "end"} | body
        self._flush()

    def _flush(self) -> bool:
        """Send what the window takes. False: some is left."""
        unsent = self._unsent
        while unsent:
            stream, piece = unsent[0]
            count = self.connection.send(self.number, stream, piece)
            if count < len(piece):
                unsent[0] = (stream, memoryview(piece)[count:])
                return False
            unsent.popleft()
        if self._end is not None:
            self.connection.send_message(self.number, self._end)
            self.finish()
        return True
