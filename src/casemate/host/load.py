"""How many wait for this host's processors."""

from __future__ import annotations

import os
from pathlib import Path

CROWDED = 4  # runnable threads for each processor: one that should answer may have to wait for seconds


def is_crowded(loadavg: Path = Path("/proc/loadavg")) -> bool:
    """Whether just now far more threads want to run than can. Source: proc_loadavg(5)"""
    runnable = int(loadavg.read_text().split()[3].partition("/")[0])
    return runnable > CROWDED * (os.cpu_count() or 1)
