"""Whether a host is crowded."""

from __future__ import annotations

import os
from pathlib import Path

from casemate.host import is_crowded


def test_it_is_when_far_more_want_to_run_than_can(tmp_path: Path) -> None:
    file, cpus = tmp_path / "loadavg", os.cpu_count() or 1
    file.write_text(f"0.10 0.20 0.30 {4 * cpus}/900 12345\n")
    assert not is_crowded(file)
    file.write_text(f"0.10 0.20 0.30 {4 * cpus + 1}/900 12345\n")
    assert is_crowded(file)


def test_the_kernels_own_file_can_be_read() -> None:
    assert is_crowded() in (True, False)
