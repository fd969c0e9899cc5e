"""What a cell does, told on a kernel's iopub channel as it comes, within bounds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from casemate.integrations.jupyter.outputs import RESULTS_BYTES, STREAM_CHARS, data_of, message_of, text_decoder
from casemate.sdk.code import Result

Send = Callable[[str, dict[str, Any]], object]


class Sending:
    """``stdout``, ``stderr`` and ``result`` are sinks for ``run_code``. What is over the bounds is not sent."""

    def __init__(self, send: Send, count: int | None, *, silent: bool) -> None:
        self._send, self._count, self._silent = send, count, silent
        self._decoders = {name: text_decoder() for name in ("stdout", "stderr")}
        self._room_chars, self._room_bytes = STREAM_CHARS, RESULTS_BYTES
        self._lost_chars = self.lost_results = 0

    def stdout(self, data: bytes) -> None:
        self._text("stdout", self._decoders["stdout"].decode(data))

    def stderr(self, data: bytes) -> None:
        self._text("stderr", self._decoders["stderr"].decode(data))

    def result(self, result: Result) -> None:
        if self._silent and result.type == "result":
            return
        if result.clears is None:
            size = sum(len(value) if isinstance(value, str) else 512 for value in data_of(result).values())
            if size > self._room_bytes:
                self.lost_results += 1
                return
            self._room_bytes -= size
        self._send(*message_of(result, self._count))

    def note(self, text: str) -> None:
        """What we say ourselves."""
        self._send("stream", {"name": "stderr", "text": f"[casemate: {text}]\n"})

    def end(self, left_out: int = 0) -> None:
        for name, decoder in self._decoders.items():
            self._text(name, decoder.decode(b"", final=True))
        if self._lost_chars:
            self.note(f"{self._lost_chars} characters of output are left out here")
        if lost := self.lost_results + left_out:
            self.note(f"{lost} results were too large or too many, and are left out")

    def _text(self, name: str, text: str) -> None:
        sent = text[: self._room_chars]
        self._room_chars -= len(sent)
        self._lost_chars += len(text) - len(sent)
        if sent:
            self._send("stream", {"name": name, "text": sent})
