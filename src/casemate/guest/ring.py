"""The last piece of a stream, addressed by the byte's offset from the stream's start."""

from __future__ import annotations

from collections import deque

RING_BYTES = 1 << 20
_MERGE_BELOW = 8192  # neighbours are joined up to here, so that single bytes do not cost an object each


class Ring:
    """Holds the pieces as they were read: nothing is copied on the way through."""

    __slots__ = ("_pieces", "end", "start")

    def __init__(self) -> None:
        self._pieces: deque[bytes] = deque()
        self.start = 0
        self.end = 0

    def append(self, piece: bytes) -> None:
        pieces = self._pieces
        if pieces and len(pieces[-1]) + len(piece) <= _MERGE_BELOW:
            pieces[-1] += piece
        else:
            pieces.append(piece)
        self.end += len(piece)

    def trim(self, needed_from: int) -> None:
        """Drop the oldest pieces over RING_BYTES, but nothing from offset *needed_from* on."""
        pieces = self._pieces
        while self.end - self.start > RING_BYTES and self.start + len(pieces[0]) <= needed_from:
            self.start += len(pieces.popleft())

    def is_full(self) -> bool:
        return self.end - self.start >= RING_BYTES

    def piece_at(self, offset: int) -> bytes | memoryview:
        """Some bytes from *offset* on, at least one; start <= offset < end. Mostly asked for the newest."""
        begin = self.end
        for piece in reversed(self._pieces):
            begin -= len(piece)
            if begin == offset:
                return piece
            if begin < offset:
                return memoryview(piece)[offset - begin :]
        raise IndexError(offset)
