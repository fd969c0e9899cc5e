"""Output as progress: in order, bounded, growing."""

from __future__ import annotations

import anyio
import pytest

from casemate.errors import NotFound
from casemate.integrations.mcp.progress import HELD_BYTES, MESSAGE_CHARS, Teller, telling


def test_a_message_is_what_came_since_the_last() -> None:
    teller = Teller()
    assert teller.message() is None
    teller.output("aé".encode()[:2])
    assert teller.message() == "a"
    teller.output("é".encode()[1:] + b"b")
    assert teller.message() == "éb"


def test_who_asks_seldom_gets_the_end_of_it() -> None:
    teller = Teller()
    for _ in range(100):
        teller.output(b"x" * 10_000)
    teller.output(b"end")
    assert len(teller._held) <= HELD_BYTES
    message = teller.message()
    assert message is not None
    assert message.endswith("xend")
    assert len(message) == MESSAGE_CHARS + 2 or len(message) == MESSAGE_CHARS


def test_progress_grows_and_beats() -> None:
    told: list[tuple[float, str | None]] = []

    async def report(progress: float, total: float | None, message: str | None) -> None:
        told.append((progress, message))

    async def call() -> None:
        async with telling(report) as teller:
            teller.output(b"one")
            await anyio.sleep(0.5)
            teller.output(b"two")
            await anyio.sleep(0.5)

    anyio.run(call)
    assert [message for _, message in told] == ["one", "two"]
    assert told[0][0] < told[1][0]


def test_nobody_asked() -> None:
    async def call() -> None:
        async with telling(None) as teller:
            teller.output(b"one")

    anyio.run(call)


def test_what_a_call_raises_is_not_wrapped() -> None:
    async def report(progress: float, total: float | None, message: str | None) -> None: ...

    async def call() -> None:
        async with telling(report):
            raise NotFound("no such file")

    with pytest.raises(NotFound):
        anyio.run(call)
