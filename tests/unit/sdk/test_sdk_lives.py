"""How a sandbox rests, as the SDK says it."""

from __future__ import annotations

import pytest
from tests.unit.sdk.fake_daemon import FakeDaemon

from casemate import errors
from casemate.sdk import Sandbox, SuspendedFacts


def test_how_it_rests_is_asked_for_and_told(fake: FakeDaemon) -> None:
    with Sandbox.create(on_idle="suspend", park_after_s=None, auto_resume=False) as sandbox:
        info = sandbox.info
        assert (info.on_idle, info.park_after_s, info.auto_resume) == ("suspend", None, False)
        assert (info.suspended, info.parked) == (None, False)
    with Sandbox.create() as sandbox:
        info = sandbox.info
        assert (info.on_idle, info.park_after_s, info.auto_resume) == ("kill", 5, True)


def test_suspended_and_resumed(fake: FakeDaemon) -> None:
    with Sandbox.create() as sandbox:
        facts = sandbox.suspend()
        assert (facts.stored_bytes, facts.dirty_bytes, facts.written_bytes) == (11 << 20, 9 << 20, 1 << 20)
        assert (facts.ratio, facts.pause_ms, facts.took_ms) == (1.1, 50.4, 120.2)
        assert (sandbox.info.state, sandbox.info.suspended) == ("suspended", facts)
        same = Sandbox.connect(sandbox.id)
        assert same.info.suspended == facts
        assert same.resume(cold=True).suspended is None
        same.close()
        assert fake.starts == [{"cold": True}]
        assert sandbox.refresh().state == "running"
        assert sandbox.keep_alive(60).id == sandbox.id
        assert fake.starts[-1] == {"for_s": 60}


def test_what_has_ended_is_not_suspended(fake: FakeDaemon) -> None:
    with Sandbox.create() as sandbox:
        Sandbox.connect(sandbox.id).kill()
        with pytest.raises(errors.StateConflict, match="terminated"):
            sandbox.suspend()


def test_of_nothing_changed_there_is_no_ratio() -> None:
    assert SuspendedFacts(0.0, 4096, 0, 0, 1.0, 2.0).ratio is None
