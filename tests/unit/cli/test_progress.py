"""Progress where nobody watches: a log that is not flooded."""

from __future__ import annotations

import pytest

from casemate.cli import progress
from casemate.cli.progress import Lines, Steps


def test_a_log_gets_a_line_per_step_and_one_in_five_seconds(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    steps = Steps(Lines())
    for package in range(1000):  # as apt says it: a line per package, and per percent
        now += 0.02
        steps.tell("install", f"Unpacking package {package}", package / 1000)
    steps.tell("build", "booting", None)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "install"
    assert lines[-1] == "build"
    assert len(lines) == 2 + 3  # 20 s, the first of them quiet for 5
