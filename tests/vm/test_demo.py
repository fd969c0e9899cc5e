"""The main job, as ``make demo`` runs it: untrusted code over a real file; what comes out depends on what went in."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from vm_world import Daemon

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
PNG = b"\x89PNG\r\n\x1a\n"


def run(data: Path, chart: Path) -> str:
    words = ["run", "--timings", "--put", f"{data}:co2.csv", "--get", f"chart.png:{chart}"]
    argv = [sys.executable, "-m", "casemate.cli", *words, str(EXAMPLES / "co2.py"), "co2.csv"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=True)
    for told in ("isolation:", "restore:", "first answer:", "first exec:"):
        assert told in done.stderr
    return done.stdout


@pytest.mark.vm
def test_one_changed_row_changes_the_table_and_the_chart(daemon: Daemon, tmp_path: Path, no_trace: None) -> None:
    rows = (EXAMPLES / "co2.csv").read_text().splitlines(keepends=True)
    day, _, _ = rows[1000].partition(",")
    rows[1000] = f"{day},999.9\n"
    (tmp_path / "changed.csv").write_text("".join(rows))
    table = run(EXAMPLES / "co2.csv", tmp_path / "one.png")
    changed = run(tmp_path / "changed.csv", tmp_path / "two.png")
    assert "1970s" in table
    assert table != changed
    one, two = (tmp_path / "one.png").read_bytes(), (tmp_path / "two.png").read_bytes()
    assert one.startswith(PNG)
    assert two.startswith(PNG)
    assert one != two
