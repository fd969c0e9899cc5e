"""What is written and synced all the time is in memory; and a stream for each way in which a VMM treats it."""

from __future__ import annotations

import pytest
from tests.fakes.fake_vmm import FakeDriver
from tests.memory import tmp_path

__all__ = ["tmp_path"]


@pytest.fixture(params=[True, False], ids=["", "breaking"])
def each_stream(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once over streams that survive a save, once over those that do not."""
    monkeypatch.setattr(FakeDriver, "stream_survives", request.param)
