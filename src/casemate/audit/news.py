"""Wakes who waits for the next event."""

from __future__ import annotations

import anyio


class News:
    """``next()`` before one looks, so that nothing between looking and waiting is missed."""

    def __init__(self) -> None:
        self._next = anyio.Event()

    def next(self) -> anyio.Event:
        return self._next

    def tell(self) -> None:
        told, self._next = self._next, anyio.Event()
        told.set()
