from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.unit.sdk.fake_daemon import FakeDaemon, serve


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDaemon]:
    """A fake daemon that CASEMATE_URL points to."""
    path = tmp_path / "daemon.sock"
    (tmp_path / "boxes").mkdir()
    monkeypatch.setenv("CASEMATE_URL", f"unix://{path}")
    with serve(path, tmp_path / "boxes") as fake:
        yield fake
