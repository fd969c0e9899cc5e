"""The list of execs fits into one message, whatever their command lines are."""

from __future__ import annotations

from typing import Any

import pytest

from casemate.guest.exec_channels import newest
from casemate.guest.execs import Exec
from casemate.guest.reactor import Reactor
from casemate.wire import bodies


def listed(count: int, word: str) -> list[dict[str, Any]]:
    reactor = Reactor()
    try:
        return [Exec(reactor, f"{n:016x}", [word] * 50, {}, None).listed() for n in range(count)]
    finally:
        reactor.close()


@pytest.mark.parametrize("word", ["x", "x" * 300, "\x01" * 300, "ü" * 300, "\U0001f600" * 300])
@pytest.mark.parametrize("count", [0, 1, 99, 512])
def test_it_fits(count: int, word: str) -> None:
    every = listed(count, word)
    found = newest(every)
    assert found == every[len(every) - len(found) :]
    assert bool(found) is bool(count)
    bodies.dump({"execs": found})
