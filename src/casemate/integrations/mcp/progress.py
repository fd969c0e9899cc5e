"""What a running call writes, told as progress to a client that asked for it."""

from __future__ import annotations

import codecs
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import anyio

from casemate.errors import CasemateError

BEAT_S = 0.2  # so often at most
QUIET_S = 5.0  # after so long without output a bare one: a client may reset its time-out by it
MESSAGE_CHARS = 4000  # of what came since the last one the end; the result has all of it
HELD_BYTES = 4 * MESSAGE_CHARS

Report = Callable[[float, float | None, str | None], Awaitable[None]]


class Teller:
    """Takes output as it comes, never waits; what it is too much of is left out at the front."""

    def __init__(self) -> None:
        self._held = bytearray()
        self._seen = 0
        self._dropped = False
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def output(self, data: bytes) -> None:
        self._seen += len(data)
        self._held += data
        if len(self._held) > HELD_BYTES:
            del self._held[:-HELD_BYTES]
            self._dropped = True

    def message(self) -> str | None:
        """What has come since the last message."""
        if not self._held:
            return None
        text = ("… " if self._dropped else "") + self._decoder.decode(bytes(self._held))[-MESSAGE_CHARS:]
        self._held.clear()
        self._dropped = False
        return text

    async def tell(self, report: Report) -> None:
        """Until cancelled. Progress counts bytes of output, and beats where there is none: it has to grow."""
        told, last = 0.0, anyio.current_time()
        while True:
            await anyio.sleep(BEAT_S)
            message = self.message()
            if message is None and anyio.current_time() - last < QUIET_S:
                continue
            told, last = max(told + 0.001, float(self._seen)), anyio.current_time()
            await report(told, None, message)


@asynccontextmanager
async def telling(report: Report | None) -> AsyncIterator[Teller]:
    teller = Teller()
    if report is None:
        yield teller
        return
    failure: CasemateError | None = None
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(teller.tell, report)
        try:
            yield teller
        except CasemateError as error:  # as itself, not within a group
            failure = error
        tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure
