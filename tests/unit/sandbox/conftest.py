from __future__ import annotations

import pytest
from tests.fakes.fake_vmm import FakeDriver


@pytest.fixture(params=[True, False], ids=["", "breaking"])
def each_stream(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once over streams that survive a save, once over those that do not."""
    monkeypatch.setattr(FakeDriver, "stream_survives", request.param)
