"""The last of what a VMM says on a pipe: bounded in what is kept, and in how fast it is taken.

Who writes faster loses what does not fit into the pipe, not its time: the pipe is the writer's without blocking too.
"""

from __future__ import annotations

import asyncio
import os

PIECE_BYTES = 65_536  # all that a pipe holds
PAUSE_S = 0.05  # between two pieces: at most 1.3 MB/s of a flood cost us anything


class Tail:
    """Owns the descriptor *ours* (non-blocking), the reading end. For one event loop, from ``follow`` to ``close``."""

    def __init__(self, ours: int, kept_bytes: int = PIECE_BYTES) -> None:
        self._ours = ours
        self._kept_bytes = kept_bytes
        self._text = b""
        self._pause: asyncio.TimerHandle | None = None
        self.written = 0  # bytes, in all

    def follow(self) -> None:
        asyncio.get_running_loop().add_reader(self._ours, self._on_readable)

    def read(self) -> bytes:
        """What is kept, with what has just come."""
        self._take()
        return self._text

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._ours)
        if self._pause is not None:
            self._pause.cancel()
        os.close(self._ours)

    def _on_readable(self) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._ours)
        if self._take():
            self._pause = loop.call_later(PAUSE_S, self.follow)

    def _take(self) -> bool:
        """Whether more may come."""
        try:
            piece = os.read(self._ours, PIECE_BYTES)
        except BlockingIOError:
            return True
        self.written += len(piece)
        self._text = (self._text + piece)[-self._kept_bytes :]
        return bool(piece)
