"""Contexts where the warm Python has died: those that live go on, new ones are refused in time."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from cell_guest import CellGuest

from casemate.guest import context


@pytest.fixture
def bereft() -> Iterator[CellGuest]:
    guest = CellGuest()
    guest.act("context", op="create", context_id="old")
    os.kill(guest.zygote.root_pid, 9)
    guest.until(lambda: guest.failures)
    yield guest
    guest.close()


def test_old_ones_go_on_and_new_ones_are_refused(bereft: CellGuest) -> None:
    assert bereft.run("1 + 1", context="old").text == "2"
    seen = bereft.run("1")
    assert seen.end is not None
    assert seen.end["end"]["kind"] == "context-died"
    assert "no warm Python" in seen.end["end"]["reason"]
    assert seen.end["execution_count"] == 0
    denied = bereft.act("context", op="create", context_id="new").denied
    assert denied is not None
    assert denied.code == "guest-error"
    assert bereft.run("2", context="old").text == "2"


def test_one_that_is_not_ready_in_time_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(context, "READY_LIMIT_S", 0.2)
    guest = CellGuest()
    try:
        guest.until(lambda: len(guest.zygote._waiting) == 2)
        for child in guest.zygote._waiting:
            os.kill(child.pid, 19)
        denied = guest.act("context", op="create", context_id="stopped").denied
        assert denied is not None
        assert denied.code == "guest-error"
        assert "not ready within 0.2 s" in denied.body["message"]
        seen = guest.run("1")
        assert seen.end is not None
        assert "not ready within 0.2 s" in seen.end["end"]["reason"]
        guest.until(lambda: guest.run("1").kind == "ok")
    finally:
        guest.close()
