"""The agent's own words on the console, told apart from the kernel's."""

from __future__ import annotations

from typing import TextIO

MARK = "casemate-agent: "


class Marked:
    """Puts a mark before each line. Just what ``print`` and ``traceback`` ask of a stream."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._in_line = False

    def write(self, text: str) -> int:
        for line in text.splitlines(keepends=True):
            self._stream.write(line if self._in_line else MARK + line)
            self._in_line = not line.endswith("\n")
        return len(text)

    def flush(self) -> None:
        self._stream.flush()
