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


def test_the_kernels_own_file_counts_who_asks() -> None:
    runnable = int(Path("/proc/loadavg").read_text().split()[3].partition("/")[0])
    assert runnable >= 1
    assert isinstance(is_crowded(), bool)
